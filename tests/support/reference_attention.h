// Attention kernels written out plainly, in the order of operations that layers/cpu documents:
// results must have the same bits.
#pragma once
#include <vector>

#include "layers/kernels.h"

namespace ferry {

float reference_exp(float x);
// rounded: factors to bf16, as CpuOptions::bf16_activations has it.
void reference_prefill(const PrefillAttention& attention, bool rounded = false);
void reference_decode(const DecodeAttention& attention, bool rounded = false);
// Of a row of KeySelection::q the scores of all keys that it chooses among.
std::vector<float> reference_key_scores(const KeySelection& selection, const SequenceRows& rows,
                                        int64_t row, bool rounded = false);

}  // namespace ferry
