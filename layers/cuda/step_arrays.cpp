#include "layers/cuda/step_arrays.h"

#include <algorithm>

#include "base/cuda_api.h"

namespace ferry {
namespace {

constexpr size_t round_up(size_t size) {
    return (size + 255) / 256 * 256;
}

}  // namespace

StepArrays::StepArrays(CudaDevice& device, size_t capacity_bytes)
    : device_(device),
      memory_(device, capacity_bytes),
      ring_(pinned_host_memory(kSegments * kSegmentBytes)) {
    for (int i = 0; i < kSegments; ++i) segment_done_.emplace_back(device);
}

StepArrays::Copy& StepArrays::shared_copy(const void* key, size_t size_bytes) {
    Copy& found = copies_[key];
    if (found.capacity >= size_bytes) return found;
    Copy placed;  // `found` goes when a half is full
    place(placed, size_bytes);
    return copies_[key] = std::move(placed);
}

StepArrays::Copy& StepArrays::own_copy(const void* key, size_t size_bytes, size_t most_bytes) {
    Copy& copy = own_copies_[{owner_, key}];
    if (copy.at != nullptr && copy.capacity >= size_bytes) return copy;
    FERRY_CHECK(copy.capacity == 0, "an array of {} bytes has a place of {}", size_bytes,
                copy.capacity);
    copy.capacity = round_up(std::max(size_bytes, most_bytes));
    copy.own = Buffer(device_, copy.capacity);
    copy.at = copy.own.as<std::byte>();
    return copy;
}

void StepArrays::drop(uint64_t owner) {
    own_copies_.erase(own_copies_.lower_bound({owner, nullptr}),
                      own_copies_.lower_bound({owner + 1, nullptr}));
}

const void* StepArrays::on_device(const void* key, std::span<const std::byte> content,
                                  size_t most_bytes) {
    // Where an array may grow to something it has a place.
    if (content.empty() && (owner_ == 0 || most_bytes == 0)) return nullptr;
    Copy& copy =
        owner_ == 0 ? shared_copy(key, content.size()) : own_copy(key, content.size(), most_bytes);
    if (is_recording(device_))
        FERRY_CHECK(copy.step == step_,
                    "a CUDA graph is recorded with an array that begin_step does not know");
    copy.step = step_;
    if (!std::ranges::equal(copy.content, content)) {
        upload(content, copy.at);
        copy.content.assign(content.begin(), content.end());
    }
    return copy.at;
}

void StepArrays::place(Copy& copy, size_t size_bytes) {
    const size_t half_bytes = memory_.size_bytes() / kHalves;
    // Arrays grow with their batches: room for twice as much, and pages of it.
    copy.capacity = std::max<size_t>(4096, round_up(2 * size_bytes));
    if (copy.capacity > half_bytes / 2) {
        copy.own = Buffer(device_, copy.capacity);
        copy.at = copy.own.as<std::byte>();
        return;
    }
    if (used_ + copy.capacity > half_bytes) {
        outgrown_ = std::exchange(copies_, {});
        half_ = 1 - half_;
        used_ = 0;
    }
    copy.at = memory_.as<std::byte>() + static_cast<size_t>(half_) * half_bytes + used_;
    used_ += copy.capacity;
}

void StepArrays::upload(std::span<const std::byte> content, std::byte* to) {
    FERRY_CHECK(!is_recording(device_),
                "a step array changed while a CUDA graph is recorded: begin_step comes first");
    ++num_uploads_;
    while (!content.empty()) {
        size_t segment = ring_used_ / kSegmentBytes;
        const size_t left = (segment + 1) * kSegmentBytes - ring_used_;
        const size_t size = std::min(content.size(), left);
        std::byte* pinned = ring_.as<std::byte>() + ring_used_;
        std::memcpy(pinned, content.data(), size);
        check_cuda(cudaMemcpyAsync(to, pinned, size, cudaMemcpyHostToDevice, device_.stream()),
                   "upload a step's arrays");
        content = content.subspan(size);
        to += size;
        ring_used_ += std::min(left, (size + 15) / 16 * 16);
        if (ring_used_ < (segment + 1) * kSegmentBytes) continue;
        segment_done_[segment].record(device_.stream());
        segment = (segment + 1) % kSegments;
        segment_done_[segment].synchronize();  // its copies of the last round
        ring_used_ = segment * kSegmentBytes;
    }
}

}  // namespace ferry
