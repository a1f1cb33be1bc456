// Cuts a step's rows into micro-batches that travel and compute in turns (ping-pong pipeline).
#pragma once
#include <vector>

#include "layers/batch.h"

namespace ferry {

// Micro-batch i holds rows [T i / n, T (i + 1) / n) of the step. Rows of one sequence stay in
// order, so a later micro-batch finds the latents of the earlier ones in the cache. Arrays are
// reused: no allocation after construction.
class MicroBatches {
  public:
    MicroBatches(int num, int64_t max_tokens, int64_t max_sequences);

    void split(const StepBatch& step);
    int num() const { return static_cast<int>(parts_.size()); }
    // Row numbers in it are its own; `first_row` is where it begins in the step. It has no logit
    // rows.
    const StepBatch& batch(int index) const { return parts_[static_cast<size_t>(index)].batch; }
    int64_t first_row(int index) const { return parts_[static_cast<size_t>(index)].first_row; }

  private:
    struct Part {
        StepBatch batch;
        int64_t first_row = 0;
        std::vector<SequenceRows> prompt, generated;
    };
    std::vector<Part> parts_;
};

}  // namespace ferry
