// Settings that change results. Everything else (layout, threads, batch, chunk sizes) must not.
#pragma once
#include "base/dtype.h"

namespace ferry {

struct Numerics {
    bool fp8_activations = false;      // quantise the inputs of fp8 weights per row and 128 columns
    bool power_of_two_scales = false;  // scale_fmt ue8m0 (DeepSeek-V3.1)
    DType cache_dtype = DType::f32;    // latent cache: f32 or bf16
    int64_t tp_slices =
        8;  // row-parallel sums are taken over this many slices of k, then by halves

    bool operator==(const Numerics&) const = default;
};

}  // namespace ferry
