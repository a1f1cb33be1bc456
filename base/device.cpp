#include "base/device.h"

#include <sys/mman.h>

#include <cstring>

#include "base/error.h"

namespace ferry {
namespace {

// Large blocks come straight from mmap (zeroed, huge pages asked for: first touch and TLB misses
// dominate otherwise).
class CpuDevice final : public Device {
  public:
    DeviceType type() const override { return DeviceType::cpu; }
    std::string name() const override { return "cpu"; }

    void* allocate(size_t size_bytes) override {
        if (size_bytes == 0) return nullptr;
        void* data =
            mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED)
            throw Error(
                ErrorKind::memory,
                "cannot allocate {:.2f} GiB of host memory: {}; use fewer requests, a smaller "
                "cache or more ranks",
                static_cast<double>(size_bytes) / (1 << 30), std::strerror(errno));
        if (size_bytes >= kHugePageBytes) madvise(data, size_bytes, MADV_HUGEPAGE);
        return data;
    }
    void free(void* data, size_t size_bytes) noexcept override {
        if (data != nullptr) munmap(data, size_bytes);
    }
    void copy_from_host(void* device_data, const void* host_data, size_t size_bytes) override {
        if (size_bytes > 0) std::memcpy(device_data, host_data, size_bytes);
    }
    void copy_to_host(void* host_data, const void* device_data, size_t size_bytes) override {
        if (size_bytes > 0) std::memcpy(host_data, device_data, size_bytes);
    }
    void synchronize() override {}

  private:
    static constexpr size_t kHugePageBytes = size_t{2} << 20;
};

}  // namespace

Device& cpu_device() {
    static CpuDevice device;
    return device;
}

}  // namespace ferry
