// Grouped products as the host sees them: parameters, tiles, launches. Includes neither CUDA's
// headers nor heavy ones of the host.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "layers/cuda/int4_tiles.h"

struct CUstream_st;

namespace ferry {

// Rows [offsets[g], offsets[g + 1]) of x use group g: y = x W_g^T. Everything is on the device, the
// offsets too: how many rows a group has is never known to the host.
struct GroupedGemmParams {
    const void* x = nullptr;          // [rows, in]: bf16 as round_rows makes it, or f32
    const float* x_scales = nullptr;  // [rows, ceil(in / 128)] or null
    const void* w = nullptr;  // [groups, out, in], rows begin on 16 bytes; int4: int4_tiles.h
    const float* w_scales = nullptr;   // fp8: [groups, ceil(out / 128), ceil(in / 128)]
    float* y = nullptr;                // [rows, out]
    const int64_t* offsets = nullptr;  // [groups + 1]
    int64_t x_stride = 0, x_scales_stride = 0, w_stride = 0, w_scales_stride = 0, y_stride = 0;
    int groups = 0, out = 0, in = 0;
};

enum class GroupedWeights { bf16, fp8, int4, f32 };

constexpr int kGemmThreads = 256;
constexpr int kGemmColumns = 128;  // of y, in a tile: weight rows that a block streams
constexpr int kGemmMostTileRows = 128;
constexpr int kGemmPlainTile = 16;  // rows and columns of a tile of f32
constexpr int kGemmMostGroups = 1024;

// Rows of a tile: the last of a group, often the only one, has few where few rows are left, so that
// small groups are bound by reading the weights once, and not by products with rows that are not
// there.
constexpr int gemm_tile_rows(int64_t num_rows, int most) {
    int rows = 16;
    while (rows < num_rows && rows < most) rows *= 2;
    return rows;
}
// A stage holds 64 values of bf16, or 128 of fp8 or int4, of each weight row, and the same values
// of the x rows as bf16. Enough stages to keep 32 KiB of weights per block on their way.
constexpr int gemm_stage_values(GroupedWeights weights) {
    return weights == GroupedWeights::bf16 ? 64 : 128;
}
constexpr int gemm_stage_bytes(int tile_rows, GroupedWeights weights) {
    return (weights == GroupedWeights::int4 ? kInt4TileBytes : kGemmColumns * 128) +
           tile_rows * 2 * gemm_stage_values(weights);
}
constexpr int gemm_num_stages(int tile_rows, GroupedWeights weights) {
    return tile_rows <= 32 ? (weights == GroupedWeights::bf16 ? 4 : 6) : 3;
}
constexpr int gemm_tile_bytes(int tile_rows, GroupedWeights weights) {
    return gemm_num_stages(tile_rows, weights) * gemm_stage_bytes(tile_rows, weights);
}
// Of the first tile of every group, the number of tiles and the rows of the largest group.
constexpr int gemm_first_tile_bytes(int groups, int alignment) {
    return (4 * (groups + 2) + alignment - 1) / alignment * alignment;
}
// Dynamic shared memory of a block: the first tiles, then stages.
constexpr int gemm_shared_bytes(int groups, GroupedWeights weights) {
    int most = 0;
    for (int rows = 16; rows <= kGemmMostTileRows; rows *= 2)
        most = gemm_tile_bytes(rows, weights) > most ? gemm_tile_bytes(rows, weights) : most;
    return gemm_first_tile_bytes(groups, 128) + most;
}

// ---- Hopper's kernel (grouped_gemm_wgmma.cu)

// What the tensor cores multiply: bf16 by bf16, fp8 by fp8, or bf16 by weights widened to it in
// registers, of fp8 or int4.
enum class GemmInputs { bf16, fp8, widened_fp8, widened_int4 };

constexpr int kGemmFewRows = 64;  // of every group: smaller tiles, and more stages for them
// Rows and columns of its largest tile: as many as there are registers for the sums of, of which
// fp8 has two sets.
constexpr int gemm_wgmma_most_rows(GemmInputs inputs) {
    return inputs == GemmInputs::bf16 ? 256 : 128;
}
constexpr int gemm_wgmma_columns(GemmInputs inputs, int most_rows) {
    return inputs == GemmInputs::fp8 && most_rows > kGemmFewRows ? 256 : 128;
}
// A stage holds 64 values of bf16, or 128 of others, of the weight rows of a tile and the same of
// most_rows rows of x. They begin on 1024 bytes.
constexpr int gemm_wgmma_stage_bytes(GemmInputs inputs, int most_rows) {
    const bool widened = inputs == GemmInputs::widened_fp8 || inputs == GemmInputs::widened_int4;
    return (inputs == GemmInputs::widened_int4 ? kInt4TileBytes
                                               : gemm_wgmma_columns(inputs, most_rows) * 128) +
           most_rows * (widened ? 256 : 128);
}
// Behind the stages: scales of the rows of x and of each 128 weight rows.
constexpr int gemm_wgmma_scale_bytes(int most_rows) {
    return 4 * (most_rows + 4);
}
// As many stages as a block of sm_90 has shared memory for, beside the first tiles.
constexpr int gemm_wgmma_num_stages(GemmInputs inputs, int most_rows) {
    return ((227 << 10) - (5 << 10)) /
           (gemm_wgmma_stage_bytes(inputs, most_rows) + gemm_wgmma_scale_bytes(most_rows));
}
constexpr int gemm_wgmma_shared_bytes(int groups, GemmInputs inputs) {
    int most = 0;
    for (int rows : {kGemmFewRows, gemm_wgmma_most_rows(inputs)}) {
        const int bytes = gemm_wgmma_num_stages(inputs, rows) *
                          (gemm_wgmma_stage_bytes(inputs, rows) + gemm_wgmma_scale_bytes(rows));
        most = bytes > most ? bytes : most;
    }
    return gemm_first_tile_bytes(groups, 1024) + most;
}

// Tiles that products of `rows` rows in any groups can have at most, however rows are spread.
constexpr int64_t gemm_most_tiles(int64_t rows, int64_t groups, int64_t out, int64_t tile_columns) {
    const int64_t row_tiles = rows / 16 + (rows < groups ? rows : groups);
    return (out + tile_columns - 1) / tile_columns * row_tiles;
}

// bf16, fp8 and int4 weights: tensor cores. f32: a thread per element with the CPU's order of
// operations. `num_blocks` persistent blocks share the tiles; results do not depend on it.
void launch_grouped_gemm(const GroupedGemmParams& params, GroupedWeights weights, int num_blocks,
                         CUstream_st* stream);

// The same on sm_90 alone. inputs fp8: x is fp8 as it came, rows begin on 16 bytes and `in` is a
// multiple of 16; else x is bf16 as round_rows makes it.
void launch_grouped_gemm_wgmma(const GroupedGemmParams& params, GemmInputs inputs, int num_blocks,
                               CUstream_st* stream);

// Rows of x as the tensor cores take them: bf16, the first offsets[groups] rows, columns from `in`
// to params.x_stride zero. The stride is a multiple of 16 for fp8 weights, for which the values of
// each 16 are permuted to the order in which the product takes them; else of 8.
struct RoundRows {
    const void* x = nullptr;  // [rows, in] f32 or fp8
    int64_t x_stride = 0;
    bool x_fp8 = false;
    uint16_t* to = nullptr;
    int64_t max_rows = 0;  // offsets[groups] is not more
    bool permute = false;
};
void launch_round_rows(const GroupedGemmParams& params, const RoundRows& rows, CUstream_st* stream);

}  // namespace ferry
