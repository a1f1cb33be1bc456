// RoPE angles with YaRN scaling (MODEL.md "RoPE with YaRN"; Peng et al. 2023,
// https://arxiv.org/abs/2309.00071).
#pragma once
#include <vector>

#include "base/buffer.h"
#include "layers/model_config.h"

namespace ferry {

// Angle per position of each pair, r/2 values, in double.
std::vector<double> rope_frequencies(const ModelConfig& config);

// [num_positions, r] f32: cos and sin of pair i at columns 2i and 2i + 1, both times m(factor,
// mscale) / m(factor, mscale_all_dim). Angles are reduced in double, so far positions stay exact.
OwnedTensor make_rope_table(const ModelConfig& config, int64_t num_positions, Device& device);

}  // namespace ferry
