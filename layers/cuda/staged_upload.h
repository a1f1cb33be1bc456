// Host memory to the GPU at the rate of the bus: through pinned buffers, several on their way while
// the next is filled.
#pragma once
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "base/device_cuda.h"
#include "layers/kernels.h"

namespace ferry {

class StagedUpload {
  public:
    explicit StagedUpload(CudaDevice& device) : device_(device) {}

    // Rows of row_bytes, to_pitch and from_pitch bytes apart. The host memory is free again when it
    // returns; the data arrives in the order of the device's stream. Any thread.
    void copy(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t row_bytes,
              size_t num_rows);

    // Since the beginning: what was copied, and the time that callers spent in copy, of all threads
    // together.
    UploadTotals totals() const;

  private:
    static constexpr size_t kBufferBytes = size_t{8} << 20;
    static constexpr size_t kNumBuffers = 4;
    struct Slot {
        Buffer memory;  // pinned
        Event copied;
        bool busy = false;
    };
    // Given back also after a failure, or other threads would wait for it without end.
    struct GiveBack {
        StagedUpload* upload;
        void operator()(Slot* slot) const;
    };
    using TakenSlot = std::unique_ptr<Slot, GiveBack>;
    TakenSlot take_slot();

    CudaDevice& device_;
    mutable std::mutex mutex_;
    std::condition_variable freed_;
    std::vector<Slot> slots_;  // kNumBuffers, made when first needed
    size_t next_ = 0;
    UploadTotals totals_;
};

}  // namespace ferry
