// The host arrays of a step (tokens, positions, slots, pages) on the device.
#pragma once
#include <cstring>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/device_cuda.h"

namespace ferry {

// Keeps a copy of every array that kernels were given. It is found again by where the array begins
// on the host, and uploaded again, to the same device address, only when what it says has changed:
// of the layers of a step the first pays. A CUDA graph is recorded with these addresses, so its
// arrays have places of their own (use), and all are brought up to date before it is recorded and
// each time before it is launched (Kernels::begin_step). Uploads go through a ring of pinned memory
// and are ordered by the device's stream.
class StepArrays {
  public:
    explicit StepArrays(CudaDevice& device, size_t capacity_bytes = size_t{8} << 20);

    template <typename T>
    const T* on_device(std::span<const T> array) {
        return static_cast<const T*>(on_device(array.data(), std::as_bytes(array)));
    }
    // `key`: what identifies the array when it is made anew each time. 16-byte aligned.
    // `most_bytes`: that it may grow to, for arrays with places of their own. Null where nothing
    // can be.
    const void* on_device(const void* key, std::span<const std::byte> content,
                          size_t most_bytes = 0);

    // Arrays from now on belong to `owner`, not 0: they keep their places until drop(owner). 0:
    // they belong to nobody, and may find another place when they are asked for again.
    void use(uint64_t owner) { owner_ = owner; }
    void drop(uint64_t owner);

    // While a graph is recorded, arrays may be used that were asked for since the last call.
    void end_step() { ++step_; }
    int64_t num_uploads() const { return num_uploads_; }

  private:
    static constexpr int kHalves = 2, kSegments = 4;
    static constexpr size_t kSegmentBytes = size_t{1} << 20;
    struct Copy {
        std::byte* at = nullptr;
        size_t capacity = 0;
        uint64_t step = 0;  // when it was last asked for
        std::vector<std::byte> content;
        Buffer own{};  // of a copy that belongs to somebody, or is large
    };
    Copy& shared_copy(const void* key, size_t size_bytes);
    Copy& own_copy(const void* key, size_t size_bytes, size_t most_bytes);
    void place(Copy& copy, size_t size_bytes);
    void upload(std::span<const std::byte> content, std::byte* to);

    CudaDevice& device_;
    Buffer memory_;  // two halves: when one is full, the copies in it stay for the call in progress
    int half_ = 0;
    size_t used_ = 0;
    std::unordered_map<const void*, Copy> copies_, outgrown_;  // in this half, and in the other
    uint64_t owner_ = 0;
    std::map<std::pair<uint64_t, const void*>, Copy> own_copies_;  // by owner
    uint64_t step_ = 1;
    int64_t num_uploads_ = 0;

    Buffer ring_;  // pinned
    std::vector<Event> segment_done_;
    size_t ring_used_ = 0;
};

}  // namespace ferry
