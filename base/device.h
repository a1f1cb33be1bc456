// Where memory lives and kernels run. CPU is always there; CUDA when it was built and a GPU is
// present.
#pragma once
#include <cstddef>
#include <string>

namespace ferry {

enum class DeviceType { cpu, cuda };

// Memory of one device. Stateless handles: devices live as long as the process.
class Device {
  public:
    virtual ~Device() = default;
    virtual DeviceType type() const = 0;
    virtual std::string name() const = 0;

    // At least 64-byte aligned, zero-filled. Throws Error(memory) with the number of bytes.
    virtual void* allocate(size_t size_bytes) = 0;
    virtual void free(void* data, size_t size_bytes) noexcept = 0;

    // Blocking copies between host memory and this device's memory.
    virtual void copy_from_host(void* device_data, const void* host_data, size_t size_bytes) = 0;
    virtual void copy_to_host(void* host_data, const void* device_data, size_t size_bytes) = 0;
    virtual void synchronize() = 0;
};

Device& cpu_device();

}  // namespace ferry
