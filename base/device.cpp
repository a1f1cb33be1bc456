#include "base/device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/error.h"

namespace ferry {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Zeroed memory. A large block begins with a huge page: huge pages are asked for, as first touch
// and TLB misses dominate otherwise, and what lies before the first whole one would be small pages.
// The pages of a small block are there at once, at half the cost of as many page faults.
void* map_memory(size_t size_bytes) {
    const size_t spare = size_bytes >= kHugePageBytes ? kHugePageBytes : 0;
    void* mapped = mmap(nullptr, size_bytes + spare, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | (spare == 0 ? MAP_POPULATE : 0), -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    if (spare == 0) return mapped;
    // munmap() takes whole pages: of the system's, which divide a huge one.
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto round_up = [](uintptr_t at, uintptr_t to) { return (at + to - 1) / to * to; };
    const uintptr_t begin = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t data = round_up(begin, kHugePageBytes);
    const uintptr_t end = round_up(data + size_bytes, page);
    const uintptr_t mapped_end = round_up(begin + size_bytes + spare, page);
    if (data > begin) munmap(mapped, data - begin);
    if (mapped_end > end) munmap(reinterpret_cast<void*>(end), mapped_end - end);
    madvise(reinterpret_cast<void*>(data), size_bytes, MADV_HUGEPAGE);
    return reinterpret_cast<void*>(data);
}

class CpuDevice final : public Device {
  public:
    DeviceType type() const override { return DeviceType::cpu; }
    std::string name() const override { return "cpu"; }

    void* allocate(size_t size_bytes) override {
        if (size_bytes == 0) return nullptr;
        void* data = map_memory(size_bytes);
        if (data == nullptr)
            throw Error(
                ErrorKind::memory,
                "cannot allocate {:.2f} GiB of host memory: {}; use fewer requests, a smaller "
                "cache or more ranks",
                static_cast<double>(size_bytes) / (1 << 30), std::strerror(errno));
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
};

}  // namespace

Device& cpu_device() {
    static CpuDevice device;
    return device;
}

}  // namespace ferry
