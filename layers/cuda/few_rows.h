// Products of few rows with fp8 weights, as the host sees them: parameters, the plan as a function
// of the shape, the launch. Includes neither CUDA's headers nor heavy ones of the host.
//
// Such a product is bound by reading the weights once; nothing is copied or transposed first.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/launch_shape.h"

struct CUstream_st;

namespace ferry {

// y = x W^T. Everything lies on the device; x and W begin on 16 bytes and so do their rows.
struct FewRowsParams {
    const void* x = nullptr;          // [rows, in]: fp8 with x_scales, else bf16
    const float* x_scales = nullptr;  // [rows, ceil(in / 128)] or null
    const uint8_t* w = nullptr;       // [out, in] e4m3
    const float* w_scales = nullptr;  // [ceil(out / 128), ceil(in / 128)]
    float* y = nullptr;               // [rows, out]
    int64_t x_stride = 0, x_scales_stride = 0, w_stride = 0, w_scales_stride = 0, y_stride = 0;
    int rows = 0, out = 0, in = 0;  // in: a multiple of 16
};

constexpr int64_t kFewRowsMost = 32;
// Up to which the kernel is faster than cuBLASLt where that multiplies fp8 by fp8, as measured on
// an H200: with large matrices more rows are bound by their way into shared memory.
constexpr int64_t few_rows_beat_library(int64_t out, int64_t in) {
    return out * in <= int64_t{16} << 20 ? kFewRowsMost : 16;
}
constexpr int kFewRowsMostWarps = 16;  // of a block
constexpr int kFewRowsOut = 16;        // outputs of a warp
constexpr int kFewRowsBlock = 128;     // of `in`, with one scale

// Shared memory of a warp: stages that are on their way, each a block of its 16 rows of the weights
// and of all rows of x.
constexpr int kFewRowsWarpBytes = 12 << 10;
constexpr int few_rows_stage_bytes(int row_tiles, bool x_fp8) {
    return kFewRowsBlock * (kFewRowsOut + 8 * row_tiles * (x_fp8 ? 1 : 2));
}
constexpr int few_rows_stages(int row_tiles, bool x_fp8) {
    return kFewRowsWarpBytes / few_rows_stage_bytes(row_tiles, x_fp8);
}

// A block has out_tiles * 16 outputs of all rows; in_warps warps share the sums of each tile, warp
// i with blocks i, i + in_warps, ... of 128 of `in`, and their parts are added in order. in_warps,
// so the order of an element's sum, depends on the matrix and the GPU, not on the number of rows.
struct FewRowsPlan {
    int row_tiles = 1;  // of 8 rows: 1, 2 or 4
    int out_tiles = 1;
    int in_warps = 1;

    int num_warps() const { return out_tiles * in_warps; }
    // Of a block: its warps' stages, then the scales of all its rows.
    int shared_bytes(int64_t in) const {
        const int in_blocks = static_cast<int>((in + kFewRowsBlock - 1) / kFewRowsBlock);
        return num_warps() * kFewRowsWarpBytes + 4 * 8 * row_tiles * in_blocks;
    }
    std::string describe() const;  // "own kernel, tiles of 8 x 16, 4 warps along in"
};
// max_shared_bytes: that a block may have; more are needed only where `in` is very large.
FewRowsPlan few_rows_plan(int64_t rows, int64_t out, int64_t in, int64_t max_shared_bytes);

inline LaunchShape few_rows_shape(const FewRowsPlan& plan, int64_t out, int64_t in) {
    const int64_t columns = plan.out_tiles * kFewRowsOut;
    return {.grid = {.x = static_cast<unsigned>((out + columns - 1) / columns)},
            .block = {.x = static_cast<unsigned>(32 * plan.num_warps())},
            .shared_bytes = static_cast<size_t>(plan.shared_bytes(in))};
}

void launch_few_rows(const FewRowsParams& params, const FewRowsPlan& plan, CUstream_st* stream);

}  // namespace ferry
