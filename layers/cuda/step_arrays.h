// The host arrays of a step (tokens, positions, slots, pages) on the device.
#pragma once
#include <cstring>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/device_cuda.h"

namespace ferry {

// Keeps a copy of every array that kernels were given. It is found again by where the array begins
// on the host, and uploaded again, to the same device address, only when what it says has changed:
// of the layers of a step the first pays. A CUDA graph is recorded with these addresses, so all its
// arrays are brought up to date before it is recorded and each time before it is launched
// (Kernels::begin_step), and addresses are part of what it is known by. Uploads go through a ring
// of pinned memory and are ordered by the device's stream.
class StepArrays {
  public:
    explicit StepArrays(CudaDevice& device, size_t capacity_bytes = size_t{8} << 20);

    template <typename T>
    const T* on_device(std::span<const T> array) {
        return static_cast<const T*>(on_device(array.data(), std::as_bytes(array)));
    }
    // `key`: what identifies the array when it is made anew each time. 16-byte aligned.
    const void* on_device(const void* key, std::span<const std::byte> content);

    // While a graph is recorded, arrays may be used that were asked for since the last call.
    void end_step() { ++step_; }
    int64_t num_uploads() const { return num_uploads_; }

  private:
    static constexpr int kHalves = 2, kSegments = 4;
    static constexpr size_t kSegmentBytes = size_t{1} << 20;
    struct Copy {
        size_t offset = 0, capacity = 0;
        uint64_t step = 0;  // when it was last asked for
        std::vector<std::byte> content;
    };
    void place(Copy& copy, size_t size_bytes);
    void upload(std::span<const std::byte> content, std::byte* to);

    CudaDevice& device_;
    Buffer memory_;  // two halves: when one is full, the copies in it stay for the call in progress
    int half_ = 0;
    size_t used_ = 0;
    std::unordered_map<const void*, Copy> copies_;
    uint64_t step_ = 1;
    int64_t num_uploads_ = 0;

    Buffer ring_;  // pinned
    std::vector<Event> segment_done_;
    size_t ring_used_ = 0;
};

}  // namespace ferry
