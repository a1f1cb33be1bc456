// What one step computes: tokens of several sequences, row after row.
#pragma once
#include <span>

#include "layers/kernels.h"

namespace ferry {

// Views of the scheduler's arrays; all have one entry per row unless said.
struct StepBatch {
    std::span<const int32_t> tokens;
    std::span<const int32_t> positions;
    std::span<const int64_t>
        slots;  // latent-cache slot: page * kPageTokens + position % kPageTokens, or kNoSlot
    // Prompt tokens always take the expanded form, generated tokens the absorbed form, however they
    // are chunked or recomputed (DESIGN 4.1). Together the two lists cover every row once.
    std::span<const SequenceRows> prompt;
    std::span<const SequenceRows> generated;
    std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
    int64_t most_keys = 0;  // not 0: StepForm::num_keys, which alone says what is launched

    int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
};

}  // namespace ferry
