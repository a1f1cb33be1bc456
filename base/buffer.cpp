#include "base/buffer.h"

namespace ferry {

Buffer::Buffer(Device& device, size_t size_bytes)
    : data_(device.allocate(size_bytes)), size_bytes_(size_bytes) {
    release_ = [&device, data = data_, size_bytes] { device.free(data, size_bytes); };
}

Buffer Buffer::adopt(void* data, size_t size_bytes, std::function<void()> release) {
    Buffer buffer;
    buffer.data_ = data;
    buffer.size_bytes_ = size_bytes;
    buffer.release_ = std::move(release);
    return buffer;
}

Buffer::~Buffer() {
    if (release_) release_();
}

void Buffer::swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(release_, other.release_);
}

OwnedTensor::OwnedTensor(Device& device, DType dtype, std::initializer_list<int64_t> shape) {
    view_ = Tensor(nullptr, dtype, shape);
    buffer_ = Buffer(device, static_cast<size_t>(view_.count() * ferry::size_bytes(dtype)));
    view_ = Tensor(buffer_.data(), dtype, shape);
}

OwnedTensor::OwnedTensor(Buffer buffer, DType dtype, std::initializer_list<int64_t> shape)
    : buffer_(std::move(buffer)), view_(buffer_.data(), dtype, shape) {
    FERRY_CHECK(buffer_.size_bytes() ==
                static_cast<size_t>(view_.count() * ferry::size_bytes(dtype)));
}

}  // namespace ferry
