// Attention kernels written out plainly, in the order of operations that layers/cpu documents:
// results must have the same bits.
#pragma once
#include "layers/kernels.h"

namespace ferry {

float reference_exp(float x);
// rounded: factors to bf16, as CpuOptions::bf16_activations has it.
void reference_prefill(const PrefillAttention& attention, bool rounded = false);
void reference_decode(const DecodeAttention& attention, bool rounded = false);

}  // namespace ferry
