#include "layers/cuda/staged_upload.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/cuda_api.h"

namespace ferry {

StagedUpload::TakenSlot StagedUpload::take_slot() {
    std::unique_lock lock(mutex_);
    while (slots_.size() < kNumBuffers)
        slots_.push_back({pinned_host_memory(kBufferBytes), Event(device_)});
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kNumBuffers;
    freed_.wait(lock, [&] { return !slot.busy; });
    slot.busy = true;
    return TakenSlot(&slot, GiveBack{this});
}

void StagedUpload::GiveBack::operator()(Slot* slot) const {
    const std::lock_guard lock(upload->mutex_);
    slot->busy = false;
    upload->freed_.notify_all();
}

void StagedUpload::copy(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                        size_t row_bytes, size_t num_rows) {
    if (row_bytes == 0 || num_rows == 0) return;
    const auto begin = std::chrono::steady_clock::now();
    device_.make_current();
    FERRY_CHECK(row_bytes <= kBufferBytes, "a row of {} bytes", row_bytes);
    const size_t rows_at_once = std::max<size_t>(1, kBufferBytes / row_bytes);
    for (size_t first = 0; first < num_rows; first += rows_at_once) {
        const size_t rows = std::min(rows_at_once, num_rows - first);
        const TakenSlot slot = take_slot();
        slot->copied.synchronize();  // what was in it before
        auto* pinned = slot->memory.as<std::byte>();
        const auto* source = static_cast<const std::byte*>(from) + first * from_pitch;
        if (from_pitch == row_bytes)
            std::memcpy(pinned, source, rows * row_bytes);
        else
            for (size_t row = 0; row < rows; ++row)
                std::memcpy(pinned + row * row_bytes, source + row * from_pitch, row_bytes);
        check_cuda(
            cudaMemcpy2DAsync(static_cast<std::byte*>(to) + first * to_pitch, to_pitch, pinned,
                              row_bytes, row_bytes, rows, cudaMemcpyHostToDevice, device_.stream()),
            "upload weights");
        slot->copied.record(device_.stream());
    }
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    const std::lock_guard lock(mutex_);
    totals_.bytes += static_cast<int64_t>(row_bytes * num_rows);
    totals_.seconds += spent.count();
}

UploadTotals StagedUpload::totals() const {
    const std::lock_guard lock(mutex_);
    return totals_;
}

}  // namespace ferry
