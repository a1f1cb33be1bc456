// Cuts a step's rows into micro-batches that travel and compute in turns (ping-pong pipeline).
#pragma once
#include <vector>

#include "layers/batch.h"
#include "layers/weight_source.h"

namespace ferry {

// Consecutive rows of a step as a batch of their own, in which they are numbered from 0; it has no
// logit rows. Arrays are reused: no allocation after construction.
class StepPart {
  public:
    // A part meets at most so many sequences.
    explicit StepPart(int64_t max_sequences);

    void take(const StepBatch& step, int64_t begin, int64_t end);
    const StepBatch& batch() const { return batch_; }
    int64_t first_row() const { return first_row_; }  // where it begins in the step

  private:
    StepBatch batch_;
    int64_t first_row_ = 0;
    std::vector<SequenceRows> prompt_, generated_;
};

// Some rows of a batch as one of their own, in which they are numbered from 0, to attend to what is
// in the cache: they have no slots. Arrays are reused.
class PickedRows {
  public:
    explicit PickedRows(int64_t max_rows);

    // `rows`, ascending, as they are numbered in a step of which `part` begins at `first_row`; all
    // lie in it.
    void take(const StepBatch& part, int64_t first_row, std::span<const int32_t> rows);
    const StepBatch& batch() const { return batch_; }

  private:
    StepBatch batch_;
    std::vector<int32_t> tokens_, positions_;
    std::vector<SequenceRows> prompt_, generated_;
};

// Micro-batch i holds rows [T i / n, T (i + 1) / n) of the step. Rows of one sequence stay in
// order, so a later micro-batch finds the latents of the earlier ones in the cache.
class MicroBatches {
  public:
    MicroBatches(int num, int64_t max_tokens, int64_t max_sequences, int64_t max_logit_rows);

    void split(const StepBatch& step);
    int num() const { return static_cast<int>(parts_.size()); }
    const StepBatch& batch(int index) const { return parts_[static_cast<size_t>(index)].batch(); }
    int64_t first_row(int index) const { return parts_[static_cast<size_t>(index)].first_row(); }
    // Which of the step's logit rows lie in the micro-batch.
    Range logit_rows(int index) const { return logit_rows_[static_cast<size_t>(index)]; }
    // Those rows of the micro-batch: batch(index) itself where they are all of it.
    const StepBatch& wanted(int index) const;

  private:
    std::vector<StepPart> parts_;
    std::vector<Range> logit_rows_;
    std::vector<PickedRows> wanted_;
};

}  // namespace ferry
