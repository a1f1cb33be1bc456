// Memory through which tensors pass between a device and the host; grows to its high-water mark.
#pragma once
#include "base/device_cuda.h"

namespace ferry {

// Host memory that `device` copies from and to at full speed: pinned for a GPU.
Buffer host_buffer_for(Device& device, size_t size_bytes);

// The same type and shape without gaps between rows, elsewhere.
Tensor with_data(const Tensor& like, void* data);

enum class StageSide : uint8_t { device, host };

// Tensors are valid until the next call.
class Stage {
  public:
    Stage(Device& device, StageSide side) : device_(device), side_(side) {}

    // An uninitialised tensor of the same type and shape, without gaps between its rows.
    Tensor shaped_like(const Tensor& like) {
        const size_t bytes = bytes_of(like);
        if (bytes > buffer_.size_bytes()) {
            buffer_ = Buffer();  // never hold both
            const size_t with_slack = bytes + bytes / 4;
            buffer_ = side_ == StageSide::device ? Buffer(device_, with_slack)
                                                 : host_buffer_for(device_, with_slack);
        }
        return with_data(like, buffer_.data());
    }
    // A copy of a tensor of the other side; rows without gaps.
    Tensor copy_of(const Tensor& other) {
        const Tensor copy = shaped_like(other);
        FERRY_CHECK(other.contiguous(), "{} has gaps between rows", other.describe());
        if (side_ == StageSide::device)
            device_.copy_from_host(copy.data(), other.data(), bytes_of(other));
        else
            device_.copy_to_host(copy.data(), other.data(), bytes_of(other));
        return copy;
    }

  private:
    static size_t bytes_of(const Tensor& x) {
        return static_cast<size_t>(x.count() * size_bytes(x.dtype()));
    }

    Device& device_;
    StageSide side_;
    Buffer buffer_;
};

// What the host reads of a device's tensors: these themselves where it can, else a copy that is
// valid until the next call.
class HostView {
  public:
    explicit HostView(Device& device)
        : direct_(device.type() == DeviceType::cpu), stage_(device, StageSide::host) {}
    Tensor of(const Tensor& tensor) { return direct_ ? tensor : stage_.copy_of(tensor); }

  private:
    bool direct_;
    Stage stage_;
};

// `host` to `on_device`, of the same shape.
inline void put(Device& device, const Tensor& host, const Tensor& on_device) {
    FERRY_CHECK(host.count() == on_device.count() && host.contiguous() && on_device.contiguous(),
                "{} to {}", host.describe(), on_device.describe());
    device.copy_from_host(on_device.data(), host.data(),
                          static_cast<size_t>(host.count() * size_bytes(host.dtype())));
}

}  // namespace ferry
