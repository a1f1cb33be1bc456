// Attention kernels written out plainly, in the order of operations that layers/cpu documents:
// results must have the same bits.
#pragma once
#include "layers/kernels.h"

namespace ferry {

float reference_exp(float x);
void reference_prefill(const PrefillAttention& attention);
void reference_decode(const DecodeAttention& attention);

}  // namespace ferry
