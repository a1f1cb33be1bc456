// Weights on the GPU: plain row-major matrices [groups][out][in], every row beginning on 16 bytes;
// int4 as int4_tiles.h says, with the scales among them.
#pragma once
#include "layers/cuda/int4_tiles.h"
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
constexpr int64_t weight_group_bytes(const WeightSpec& spec) {
    return spec.dtype == DType::int4x2 ? int4_tiles(spec.out, spec.in) * kInt4TileBytes
                                       : weight_group_stride(spec) * size_bytes(spec.dtype);
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
