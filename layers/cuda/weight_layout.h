// Weights on the GPU: plain row-major matrices [groups][out][in], every row beginning on 16 bytes.
#pragma once
#include "layers/kernels.h"

namespace ferry {

constexpr int64_t kWeightRowBytes = 16;

// Elements from row to row.
constexpr int64_t weight_row_stride(const WeightSpec& spec) {
    const int64_t bytes = spec.in * size_bytes(spec.dtype);
    return ceil_div(bytes, kWeightRowBytes) * kWeightRowBytes / size_bytes(spec.dtype);
}
constexpr int64_t weight_group_stride(const WeightSpec& spec) {
    return spec.out * weight_row_stride(spec);
}

// fp8: f32 [groups][ceil(out/128)][ceil(in/128)], rows of scales begin on 16 bytes (cuBLASLt's
// BLK128x128 asks for it).
constexpr int64_t weight_scale_stride(const WeightSpec& spec) {
    return ceil_div(ceil_div(spec.in, kScaleBlock), 4) * 4;
}
constexpr int64_t weight_scale_group_stride(const WeightSpec& spec) {
    return ceil_div(spec.out, kScaleBlock) * weight_scale_stride(spec);
}

}  // namespace ferry
