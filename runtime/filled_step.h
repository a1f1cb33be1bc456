// A decode step filled up with rows that belong to no sequence, so that steps of nearly as many
// sequences launch alike and a GPU can repeat one recording (StepGraphs of layers/kernels.h).
#pragma once
#include <vector>

#include "layers/batch.h"

namespace ferry {

// One next token for each of its sequences, whose logits are wanted: what can be filled up.
bool is_decode_step(const StepBatch& batch);

// Rows that a step of `num_rows` is filled up to: 1, 2, 4, 8, then multiples of 8 up to 128, of 16
// up to 256, and so on: at most an eighth of them is nobody's from 64 on.
int64_t filled_rows(int64_t num_rows);

class FilledStep {
  public:
    explicit FilledStep(int64_t max_rows);

    int64_t max_rows() const { return static_cast<int64_t>(tokens_.size()); }
    // The batch, a decode step, with `num_rows` rows, at most max_rows. Those behind the batch's
    // attend to nothing (position -1), are written nowhere (kNoSlot), and have logits too. Arrays
    // stay where they are from step to step; pages are the batch's.
    const StepBatch& fill(const StepBatch& batch, int64_t num_rows);

  private:
    std::vector<int32_t> tokens_, positions_, logit_rows_;
    std::vector<int64_t> slots_;
    std::vector<SequenceRows> generated_;
    StepBatch batch_;
};

}  // namespace ferry
