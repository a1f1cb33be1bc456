// Owned memory of a device. Move-only; frees itself.
#pragma once
#include <cstddef>
#include <functional>
#include <utility>

#include "base/device.h"
#include "base/tensor.h"

namespace ferry {

class Buffer {
  public:
    Buffer() = default;
    Buffer(Device& device, size_t size_bytes);

    // Memory that somebody else made, e.g. a shared-memory window of a node; `release` runs once,
    // at the end.
    static Buffer adopt(void* data, size_t size_bytes, std::function<void()> release);

    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        Buffer taken(std::move(other));
        swap(taken);
        return *this;
    }
    ~Buffer();

    void* data() const { return data_; }
    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    size_t size_bytes() const { return size_bytes_; }

    void swap(Buffer& other) noexcept;

  private:
    void* data_ = nullptr;
    size_t size_bytes_ = 0;
    std::function<void()> release_;
};

// A buffer together with the view that fills it: `OwnedTensor x(device, DType::f32, {rows, dim})`.
class OwnedTensor {
  public:
    OwnedTensor() = default;
    OwnedTensor(Device& device, DType dtype, std::initializer_list<int64_t> shape);
    OwnedTensor(Buffer buffer, DType dtype, std::initializer_list<int64_t> shape);

    const Tensor& view() const { return view_; }
    operator const Tensor&() const { return view_; }
    size_t size_bytes() const { return buffer_.size_bytes(); }

  private:
    Buffer buffer_;
    Tensor view_;
};

}  // namespace ferry
