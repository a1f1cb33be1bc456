// Products of many groups of rows with their own weights, in one launch. Persistent blocks walk
// over all tiles: groups, then 128 columns of y, then rows, so that a group's weights come from
// memory once. Every block finds the tiles from the offsets by itself.
//
// A tile goes through `in` in stages that asynchronous copies keep filling, on bf16 tensor cores
// with f32 sums. fp8 weights are widened in registers, and each 128 of `in` is summed alone and
// then added times its scale, as kernels.h says. int4 weights are multiplied by their scales in
// registers and rounded to bf16; sums then have the bits of bf16 weights. The order of an element's
// sums depends on `in` only, not on the rows of its group.
#include "base/cuda_launch.h"
#include "layers/cuda/grouped_gemm_tiles.h"
#include "layers/cuda/tiles.h"

namespace ferry {
namespace {

constexpr int kThreads = kGemmThreads, kWarps = kThreads / 32, kColumns = kGemmColumns;
constexpr int kMostRows = kGemmMostTileRows;
constexpr int kPitch = 128;  // bytes of a weight row in a stage
constexpr int kScaleValues = 128;

// ---- Tensor cores

template <int kRows, GroupedWeights kWeights>
struct TileShape {
    // Warps along rows and columns, and what each has.
    static constexpr int kRowWarps = kRows >= 64 ? 2 : 1, kColumnWarps = kWarps / kRowWarps;
    static constexpr int kRowTiles = kRows / kRowWarps / 16;
    static constexpr int kColumnTiles = kColumns / kColumnWarps / 8;
    static constexpr int kValues = gemm_stage_values(kWeights);  // of `in` in a stage
    static constexpr int kXPitch = kValues * 2;
    static constexpr int kStages = gemm_num_stages(kRows, kWeights);
    static constexpr int kStageBytes = gemm_stage_bytes(kRows, kWeights);
    static constexpr int kXAt = kStageBytes - kRows * kXPitch;

    using Sums = float[kRowTiles][kColumnTiles][4];
};

template <bool kFp8>
__device__ void load_weights(const GroupedGemmParams& p, const GemmTile& tile, int first_value,
                             std::byte* stage) {
    constexpr int kChunks = kPitch / 16, kWeightBytes = kFp8 ? 1 : 2;
    constexpr int kChunkValues = 16 / kWeightBytes;
    const std::byte* const w =
        static_cast<const std::byte*>(p.w) +
        (static_cast<int64_t>(tile.group) * p.out + tile.first_column) * p.w_stride * kWeightBytes;
#pragma unroll 2
    for (int i = threadIdx.x; i < kColumns * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int value = first_value + chunk * kChunkValues;
        copy_async(stage + tile_offset(row, chunk, kPitch),
                   w + (row * p.w_stride + value) * kWeightBytes,
                   tile.first_column + row < p.out && value < p.in);
    }
}
__device__ inline void load_int4_tile(const GroupedGemmParams& p, const GemmTile& tile,
                                      int first_value, std::byte* stage) {
    const std::byte* const from =
        int4_tile(p, tile) + first_value / kInt4TileValues * static_cast<int64_t>(kInt4TileBytes);
#pragma unroll 1
    for (int at = 16 * threadIdx.x; at < kInt4TileBytes; at += 16 * kThreads)
        copy_async(stage + at, from + at);
}

template <int kRows, GroupedWeights kWeights>
__device__ void load_stage(const GroupedGemmParams& p, const GemmTile& tile, int first_value,
                           std::byte* stage) {
    using Shape = TileShape<kRows, kWeights>;
    if constexpr (kWeights == GroupedWeights::int4)
        load_int4_tile(p, tile, first_value, stage);
    else
        load_weights<kWeights == GroupedWeights::fp8>(p, tile, first_value, stage);
    constexpr int kXChunks = Shape::kXPitch / 16;
    const uint16_t* const x = static_cast<const uint16_t*>(p.x) + tile.first_row * p.x_stride;
#pragma unroll 2
    for (int i = threadIdx.x; i < kRows * kXChunks; i += kThreads) {
        const int row = i / kXChunks, chunk = i % kXChunks, value = first_value + chunk * 8;
        copy_async(stage + Shape::kXAt + tile_offset(row, chunk, Shape::kXPitch),
                   x + row * p.x_stride + value, row < tile.num_rows && value < p.x_stride);
    }
}

// A fragments of 16 values, from chunk `chunk` on, of all rows of a warp.
template <typename Shape>
__device__ __forceinline__ void load_rows(const std::byte* stage, int first_row, int chunk,
                                          int lane, uint32_t (&a)[Shape::kRowTiles][4]) {
#pragma unroll
    for (int m = 0; m < Shape::kRowTiles; ++m)
        load_a(a[m], stage + Shape::kXAt, first_row + m * 16, chunk, Shape::kXPitch, lane);
}

// sums += products of a stage.
template <int kRows, GroupedWeights kWeights>
__device__ void multiply_stage(const std::byte* stage, int first_row, int first_column, int lane,
                               typename TileShape<kRows, kWeights>::Sums& sums) {
    using Shape = TileShape<kRows, kWeights>;
    constexpr bool kFp8 = kWeights == GroupedWeights::fp8;
    // A load of four chunks of 8 weight rows is 64 values of fp8 or 32 of bf16.
    constexpr int kSteps = kFp8 ? 4 : 2;  // of 16 values, in a load
#pragma unroll
    for (int chunk = 0; chunk < kPitch / 16; chunk += 4) {
        uint32_t w[Shape::kColumnTiles][4];
#pragma unroll
        for (int n = 0; n < Shape::kColumnTiles; ++n)
            load_b(w[n], stage, first_column + n * 8, chunk, kPitch, lane);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t a[Shape::kRowTiles][4];
            load_rows<Shape>(stage, first_row, (chunk / 4 * kSteps + step) * 2, lane, a);
#pragma unroll
            for (int n = 0; n < Shape::kColumnTiles; ++n) {
                uint32_t b0, b1;
                if constexpr (kFp8) {
                    widen_e4m3(w[n][step], b0, b1);
                } else {
                    b0 = w[n][2 * step];
                    b1 = w[n][2 * step + 1];
                }
#pragma unroll
                for (int m = 0; m < Shape::kRowTiles; ++m) multiply_add(sums[m][n], a[m], b0, b1);
            }
        }
    }
}
template <int kRows>
__device__ void multiply_int4_stage(const std::byte* stage, int first_row, int first_column,
                                    int lane,
                                    typename TileShape<kRows, GroupedWeights::int4>::Sums& sums) {
    using Shape = TileShape<kRows, GroupedWeights::int4>;
    Int4Row w[Shape::kColumnTiles];
#pragma unroll
    for (int n = 0; n < Shape::kColumnTiles; ++n)
        w[n] = load_int4_row(stage, first_column + n * 8 + lane / 4, lane % 4);
#pragma unroll
    for (int group = 0; group < kInt4RowScales; ++group) {
        uint32_t b[Shape::kColumnTiles][4];
#pragma unroll
        for (int n = 0; n < Shape::kColumnTiles; ++n) w[n].widen(group, b[n]);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t a[Shape::kRowTiles][4];
            load_rows<Shape>(stage, first_row, (2 * group + step) * 2, lane, a);
#pragma unroll
            for (int n = 0; n < Shape::kColumnTiles; ++n)
#pragma unroll
                for (int m = 0; m < Shape::kRowTiles; ++m)
                    multiply_add(sums[m][n], a[m], b[n][2 * step], b[n][2 * step + 1]);
        }
    }
}

__device__ inline void store_pair(const GroupedGemmParams& p, int64_t row, int column, float v0,
                                  float v1) {
    float* const y = p.y + row * p.y_stride + column;
    if (column + 1 < p.out && reinterpret_cast<uintptr_t>(y) % sizeof(float2) == 0) {
        *reinterpret_cast<float2*>(y) = make_float2(v0, v1);
        return;
    }
    if (column < p.out) y[0] = v0;
    if (column + 1 < p.out) y[1] = v1;
}

// The scales of a stage for the rows of a lane. Small tiles ask for them a stage ahead, because
// waiting for them takes longer than the products; large ones have no registers for them.
template <int kRowTiles>
struct StageScales {
    float w = 0, x[kRowTiles][2];

    __device__ void load(const GroupedGemmParams& p, const GemmTile& tile, int first_row,
                         int step) {
        const int64_t scale_row = static_cast<int64_t>(tile.group) * ceil_div(p.out, kScaleValues) +
                                  tile.first_column / kScaleValues;
        w = p.w_scales[scale_row * p.w_scales_stride + step];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = min(first_row + m * 16 + 8 * half, tile.num_rows - 1);
                x[m][half] = 1;
                if (p.x_scales != nullptr)
                    x[m][half] = p.x_scales[(tile.first_row + row) * p.x_scales_stride + step];
            }
    }
};

template <int kRows, GroupedWeights kWeights>
__device__ void multiply_tile(const GroupedGemmParams& p, const GemmTile& tile, std::byte* stages) {
    using Shape = TileShape<kRows, kWeights>;
    constexpr bool kFp8 = kWeights == GroupedWeights::fp8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first_row = warp / Shape::kColumnWarps * Shape::kRowTiles * 16;
    const int first_column = warp % Shape::kColumnWarps * Shape::kColumnTiles * 8;
    const int num_steps = ceil_div(p.in, Shape::kValues);
    typename Shape::Sums sums = {};
    StageScales<Shape::kRowTiles> scales;
    constexpr bool kScalesAhead = kFp8 && Shape::kRowTiles <= 2;
    if constexpr (kScalesAhead) scales.load(p, tile, first_row + g, 0);

    __syncthreads();  // the stages of the tile before are free
#pragma unroll
    for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
        if (stage < num_steps)
            load_stage<kRows, kWeights>(p, tile, stage * Shape::kValues,
                                        stages + stage * Shape::kStageBytes);
        commit_copies();
    }
    int stage = 0, filled = Shape::kStages - 1;
    for (int step = 0; step < num_steps; ++step) {
        wait_for_copies<Shape::kStages - 2>();
        __syncthreads();
        if (step + Shape::kStages - 1 < num_steps)
            load_stage<kRows, kWeights>(p, tile, (step + Shape::kStages - 1) * Shape::kValues,
                                        stages + filled * Shape::kStageBytes);
        commit_copies();
        const std::byte* const values = stages + stage * Shape::kStageBytes;
        if constexpr (kFp8) {
            typename Shape::Sums block = {};
            multiply_stage<kRows, kWeights>(values, first_row, first_column, lane, block);
            if constexpr (!kScalesAhead) scales.load(p, tile, first_row + g, step);
#pragma unroll
            for (int m = 0; m < Shape::kRowTiles; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float scale = scales.w * scales.x[m][half];
#pragma unroll
                    for (int n = 0; n < Shape::kColumnTiles; ++n)
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; ++i)
                            sums[m][n][i] = fmaf(block[m][n][i], scale, sums[m][n][i]);
                }
            if (kScalesAhead && step + 1 < num_steps) scales.load(p, tile, first_row + g, step + 1);
        } else if constexpr (kWeights == GroupedWeights::int4) {
            multiply_int4_stage<kRows>(values, first_row, first_column, lane, sums);
        } else {
            multiply_stage<kRows, kWeights>(values, first_row, first_column, lane, sums);
        }
        stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
        filled = filled + 1 == Shape::kStages ? 0 : filled + 1;
    }
    wait_for_copies<0>();
#pragma unroll
    for (int m = 0; m < Shape::kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + m * 16 + g + 8 * half;
            if (row >= tile.num_rows) continue;
#pragma unroll
            for (int n = 0; n < Shape::kColumnTiles; ++n)
                store_pair(p, tile.first_row + row,
                           tile.first_column + first_column + n * 8 + 2 * t, sums[m][n][2 * half],
                           sums[m][n][2 * half + 1]);
        }
}

// Blocks that a multiprocessor holds: two of bf16 fit into the 227 KiB of shared memory of sm_90
// and later. sm_90a itself has grouped_gemm_wgmma.cu.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || defined(__CUDA_ARCH_FEAT_SM90_ALL))
constexpr int kBlocksAtOnce = 1;
#else
constexpr int kBlocksAtOnce = 2;
#endif

template <GroupedWeights kWeights>
__global__ __launch_bounds__(kThreads, kWeights == GroupedWeights::bf16
                                           ? kBlocksAtOnce
                                           : 1) void grouped_gemm(GroupedGemmParams p) {
    FERRY_DYNAMIC_SHARED(memory);
    int* const first_tile = reinterpret_cast<int*>(memory);
    std::byte* const stages = memory + gemm_first_tile_bytes(p.groups, 128);
    count_tiles(p, kMostRows, first_tile);
    int group = 0;
    for (int index = blockIdx.x; index < num_tiles(p, kColumns, first_tile); index += gridDim.x) {
        const GemmTile tile = find_tile<false>(p, index, kColumns, kMostRows, first_tile, group);
        switch (gemm_tile_rows(tile.num_rows, kMostRows)) {
            case 16:
                multiply_tile<16, kWeights>(p, tile, stages);
                break;
            case 32:
                multiply_tile<32, kWeights>(p, tile, stages);
                break;
            case 64:
                multiply_tile<64, kWeights>(p, tile, stages);
                break;
            default:
                multiply_tile<128, kWeights>(p, tile, stages);
                break;
        }
    }
}

// ---- f32: a thread has one element, the sums are the CPU's

constexpr int kPlainTile = kGemmPlainTile, kPlainDepth = 32;

// Two blocks at once: without being told, nvcc aims at more for sm_80 and spills.
__global__ __launch_bounds__(kPlainTile* kPlainTile, 2) void grouped_gemm_f32(GroupedGemmParams p) {
    FERRY_DYNAMIC_SHARED(memory);
    float(*const x)[kPlainDepth] = reinterpret_cast<float(*)[kPlainDepth]>(memory);
    float(*const w)[kPlainDepth + 1] = reinterpret_cast<float(*)[kPlainDepth + 1]>(x + kPlainTile);
    int* const first_tile = reinterpret_cast<int*>(w + kPlainTile);
    count_tiles(p, kPlainTile, first_tile);
    const int row = threadIdx.x / kPlainTile, column = threadIdx.x % kPlainTile;
    int group = 0;
    for (int index = blockIdx.x; index < num_tiles(p, kPlainTile, first_tile); index += gridDim.x) {
        const GemmTile tile = find_tile<false>(p, index, kPlainTile, kPlainTile, first_tile, group);
        const float* const x_rows = static_cast<const float*>(p.x) + tile.first_row * p.x_stride;
        const float* const w_rows =
            static_cast<const float*>(p.w) +
            (static_cast<int64_t>(tile.group) * p.out + tile.first_column) * p.w_stride;
        float sum = 0;
        for (int begin = 0; begin < p.in; begin += kPlainDepth) {
            __syncthreads();
            for (int i = threadIdx.x; i < kPlainTile * kPlainDepth; i += kPlainTile * kPlainTile) {
                const int r = i / kPlainDepth, k = i % kPlainDepth;
                const bool in_range = begin + k < p.in;
                x[r][k] = in_range && r < tile.num_rows ? x_rows[r * p.x_stride + begin + k] : 0;
                w[r][k] = in_range && tile.first_column + r < p.out
                              ? w_rows[r * p.w_stride + begin + k]
                              : 0;
            }
            __syncthreads();
            const int depth = min(kPlainDepth, p.in - begin);
            for (int k = 0; k < depth; ++k) sum = fmaf(x[row][k], w[column][k], sum);
        }
        if (row < tile.num_rows && tile.first_column + column < p.out)
            p.y[(tile.first_row + row) * p.y_stride + tile.first_column + column] = sum;
    }
}

__device__ inline float to_f32(float value) {
    return value;
}
__device__ inline float to_f32(uint8_t value) {
    uint32_t low, high;
    widen_e4m3(value, low, high);
    return __uint_as_float(low << 16);
}

template <typename Value>
__global__ __launch_bounds__(kThreads) void round_rows(GroupedGemmParams p, RoundRows call) {
    const int64_t rows = p.offsets[p.groups], chunks = p.x_stride / 8;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * chunks;
         i += step) {
        const int64_t row = i / chunks, column = i % chunks * 8;
        const Value* const from = static_cast<const Value*>(call.x) + row * call.x_stride;
        uint32_t packed[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            int64_t source = column + 2 * pair;
            if (call.permute) {
                // The product takes four neighbouring weights of a lane t as its values 2t, 2t + 1,
                // 2t + 8, 2t + 9.
                const int64_t to_value = source % 16, t = to_value % 8 / 2;
                source += 4 * t + to_value / 8 * 2 - to_value;
            }
            packed[pair] = pack_bf16(source < p.in ? to_f32(from[source]) : 0,
                                     source + 1 < p.in ? to_f32(from[source + 1]) : 0);
        }
        *reinterpret_cast<uint4*>(call.to + row * p.x_stride + column) =
            make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
}

}  // namespace

void launch_grouped_gemm(const GroupedGemmParams& params, GroupedWeights weights, int num_blocks,
                         CUstream_st* stream) {
    const auto blocks = static_cast<unsigned>(num_blocks);
    if (weights == GroupedWeights::f32) {
        constexpr size_t kTiles = sizeof(float) * kPlainTile * (2 * kPlainDepth + 1);
        launch(grouped_gemm_f32,
               {.grid = {blocks},
                .block = {kPlainTile * kPlainTile},
                .shared_bytes = kTiles + gemm_first_tile_bytes(params.groups, 4)},
               stream, params);
        return;
    }
    const auto kernel = weights == GroupedWeights::fp8    ? grouped_gemm<GroupedWeights::fp8>
                        : weights == GroupedWeights::int4 ? grouped_gemm<GroupedWeights::int4>
                                                          : grouped_gemm<GroupedWeights::bf16>;
    launch(kernel,
           {.grid = {blocks},
            .block = {kThreads},
            .shared_bytes = static_cast<size_t>(gemm_shared_bytes(params.groups, weights))},
           stream, params);
}

void launch_round_rows(const GroupedGemmParams& params, const RoundRows& rows,
                       CUstream_st* stream) {
    constexpr int64_t kMostBlocks = 4096;
    const int64_t blocks = (rows.max_rows * (params.x_stride / 8) + kThreads - 1) / kThreads;
    if (blocks == 0) return;
    launch(rows.x_fp8 ? round_rows<uint8_t> : round_rows<float>,
           {.grid = {static_cast<unsigned>(std::min(blocks, kMostBlocks))}, .block = {kThreads}},
           stream, params, rows);
}

}  // namespace ferry
