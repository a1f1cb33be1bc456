// A warp multiplies 16 rows of the weights, the A operand of mma.m16n8k16, by up to 32 rows of x,
// the B operand. Which of 16 neighbouring values of `in` a fragment's register holds does not
// matter as long as A and B agree: lane (g, t) takes 16 values from 16 t on of rows g and g + 8, a
// load each, and of row g of x. Values of fp8 are widened exactly, to f16 beside fp8 rows and to
// bf16 beside bf16 rows; sums of 128 are scaled and added in f32.
#include "base/cuda_launch.h"
#include "layers/cuda/few_rows.h"
#include "layers/cuda/tiles.h"

namespace ferry {
namespace {

constexpr int kHalf = kFewRowsBlock / 2;  // of `in` that the lanes of a row hold in one load each

struct __align__(16) Chunk {
    uint32_t words[4];
};

// 16 values of a row of x.
template <bool kFp8>
struct Values {
    uint32_t words[kFp8 ? 4 : 8];
};
template <bool kFp8>
__device__ __forceinline__ Values<kFp8> load_values(const std::byte* row, int column, bool valid) {
    Values<kFp8> values{};
    if (valid) {
        const auto* from = reinterpret_cast<const Chunk*>(row + column * (kFp8 ? 1 : 2));
#pragma unroll
        for (int i = 0; i < (kFp8 ? 1 : 2); ++i) {
            const Chunk chunk = from[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) values.words[4 * i + j] = chunk.words[j];
        }
    }
    return values;
}

// What a warp has on its way of a block of weights: both halves of rows g and g + 8.
struct Weights {
    Chunk chunks[2][2];
};
// The same as A fragments, four steps of 16 to a half.
struct Fragments {
    uint32_t a[2][4][4];
};

template <bool kFp8>
__device__ __forceinline__ void widen(uint32_t values, uint32_t& low, uint32_t& high) {
    if constexpr (kFp8)
        widen_e4m3_to_f16(values, low, high);
    else
        widen_e4m3(values, low, high);
}

template <bool kFp8>
__device__ __forceinline__ void widen(const Weights& weights, Fragments& fragments) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            auto& a = fragments.a[half][step];
            widen<kFp8>(weights.chunks[half][0].words[step], a[0], a[2]);
            widen<kFp8>(weights.chunks[half][1].words[step], a[1], a[3]);
        }
}

// Of eight rows of x, both halves of a block of `in`.
template <bool kFp8>
struct Rows {
    Values<kFp8> values[2];
};

// One lane's view of the product.
template <bool kFp8>
struct Lane {
    const FewRowsParams& p;
    const uint8_t* w[2];  // rows g and g + 8 of the weights, from 16 t on
    const std::byte* x;   // row g
    int g, t;

    __device__ Lane(const FewRowsParams& params, int first_out, int lane)
        : p(params), g(lane / 4), t(lane % 4) {
        // Rows that are not there are the last one's again: their sums are not stored.
        for (int upper = 0; upper < 2; ++upper)
            w[upper] = p.w + min(first_out + g + 8 * upper, p.out - 1) * p.w_stride + 16 * t;
        x = static_cast<const std::byte*>(p.x) + (g * p.x_stride + 16 * t) * (kFp8 ? 1 : 2);
    }
    __device__ bool has(int column) const { return column + 16 * t < p.in; }

    __device__ void load(int block, Weights& weights) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int column = block * kFewRowsBlock + half * kHalf;
#pragma unroll
            for (int upper = 0; upper < 2; ++upper) {
                Chunk& chunk = weights.chunks[half][upper];
                if (has(column))
                    load_streaming(chunk.words, w[upper] + column);
                else
                    chunk = {};
            }
        }
    }
    __device__ Rows<kFp8> load_rows(int tile, int block) const {
        Rows<kFp8> rows;
        const std::byte* from = x + 8 * tile * p.x_stride * (kFp8 ? 1 : 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int column = block * kFewRowsBlock + half * kHalf;
            rows.values[half] =
                load_values<kFp8>(from, column, 8 * tile + g < p.rows && has(column));
        }
        return rows;
    }
};

// sums += scales * (weights by rows), over 128 of `in`. scales: of the lane's two columns of D.
template <bool kFp8>
__device__ __forceinline__ void multiply(float (&sums)[4], const Fragments& fragments,
                                         const Rows<kFp8>& rows, float2 scales) {
    float part[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            const auto& words = rows.values[half].words;
            uint32_t b[2];
            if constexpr (kFp8) {
                widen_e4m3_to_f16(words[step], b[0], b[1]);
                mma_f16(part, fragments.a[half][step], b);
            } else {
                b[0] = words[2 * step];
                b[1] = words[2 * step + 1];
                mma_bf16(part, fragments.a[half][step], b);
            }
        }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = fmaf(part[i], i % 2 == 0 ? scales.x : scales.y, sums[i]);
}

// scales[block][row]: what sums of 128 are multiplied by. All outputs of a thread block lie in one
// block of the weights' scales.
template <int kRowTiles, bool kFp8>
__device__ void collect_scales(const FewRowsParams& p, int first_out, float* scales) {
    constexpr int kRows = 8 * kRowTiles;
    const int num = (p.in + kFewRowsBlock - 1) / kFewRowsBlock * kRows;
    const float* of_w = p.w_scales + first_out / kFewRowsBlock * p.w_scales_stride;
    for (int at = static_cast<int>(threadIdx.x); at < num; at += static_cast<int>(blockDim.x)) {
        const int block = at / kRows, row = min(at % kRows, p.rows - 1);
        scales[at] = of_w[block] * (kFp8 ? p.x_scales[row * p.x_scales_stride + block] : 1.0f);
    }
}

// The parts of a block's warps, in order, into y.
template <int kRowTiles>
__device__ void add_parts(const FewRowsParams& p, const FewRowsPlan& plan, const float* parts,
                          int first_out) {
    constexpr int kPart = kRowTiles * 128;
    const int num = plan.out_tiles * kPart;
    for (int at = static_cast<int>(threadIdx.x); at < num; at += static_cast<int>(blockDim.x)) {
        const int out = at % kFewRowsOut, row = at / kFewRowsOut % (8 * kRowTiles);
        const int tile = at / kPart;
        const int to = first_out + tile * kFewRowsOut + out;
        if (row >= p.rows || to >= p.out) continue;
        // Of D: lane (out % 8, row % 8 / 2), register 2 (out / 8) + row % 2.
        const float* part = parts + tile * plan.in_warps * kPart + row / 8 * 128 +
                            4 * (4 * (out % 8) + row % 8 / 2) + 2 * (out / 8) + row % 2;
        float sum = part[0];
        for (int warp = 1; warp < plan.in_warps; ++warp) sum += part[warp * kPart];
        p.y[static_cast<int64_t>(row) * p.y_stride + to] = sum;
    }
}

template <int kRowTiles, bool kFp8>
__global__ __launch_bounds__(32 * few_rows_most_warps(kRowTiles),
                             1) void few_rows(FewRowsParams p, FewRowsPlan plan) {
    constexpr int kStages = kRowTiles == 2 ? 2 : 3;  // of weights on their way
    FERRY_DYNAMIC_SHARED(memory);
    auto* const parts = reinterpret_cast<float*>(memory);
    float* const scales = parts + plan.out_tiles * plan.in_warps * kRowTiles * 128;
    const int id = static_cast<int>(threadIdx.x) / 32;
    const int first_out = static_cast<int>(blockIdx.x) * plan.out_tiles * kFewRowsOut;
    const Lane<kFp8> lane(p, first_out + id / plan.in_warps * kFewRowsOut,
                          static_cast<int>(threadIdx.x) % 32);
    const int num_blocks = (p.in + kFewRowsBlock - 1) / kFewRowsBlock;
    const int first = id % plan.in_warps, step = plan.in_warps;

    float sums[kRowTiles][4] = {};
    Weights weights[kStages];
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage)
        if (first + stage * step < num_blocks) lane.load(first + stage * step, weights[stage]);
    Rows<kFp8> next_rows = lane.load_rows(0, min(first, num_blocks - 1));
    collect_scales<kRowTiles, kFp8>(p, first_out, scales);
    __syncthreads();
    for (int begin = first; begin < num_blocks; begin += kStages * step)
#pragma unroll
        for (int stage = 0; stage < kStages; ++stage) {
            const int block = begin + stage * step;
            if (block >= num_blocks) break;
            Fragments fragments;
            widen<kFp8>(weights[stage], fragments);
            const bool more = block + kStages * step < num_blocks;
            // Fragments that several tiles use take registers of their own; those of one need not.
            if (kRowTiles > 1 && more) lane.load(block + kStages * step, weights[stage]);
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                const Rows<kFp8> rows = next_rows;
                next_rows = tile + 1 < kRowTiles
                                ? lane.load_rows(tile + 1, block)
                                : lane.load_rows(0, min(block + step, num_blocks - 1));
                multiply(sums[tile], fragments, rows,
                         *reinterpret_cast<const float2*>(
                             &scales[(block * kRowTiles + tile) * 8 + 2 * lane.t]));
            }
            if (kRowTiles == 1 && more) lane.load(block + kStages * step, weights[stage]);
        }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
        reinterpret_cast<float4*>(parts)[(id * kRowTiles + tile) * 32 + threadIdx.x % 32] =
            make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]);
    __syncthreads();
    add_parts<kRowTiles>(p, plan, parts, first_out);
}

}  // namespace

void launch_few_rows(const FewRowsParams& params, const FewRowsPlan& plan, CUstream_st* stream) {
    const LaunchShape shape = few_rows_shape(plan, params.out, params.in);
    const bool fp8 = params.x_scales != nullptr;
    const auto start = [&](auto row_tiles) {
        launch(fp8 ? few_rows<row_tiles, true> : few_rows<row_tiles, false>, shape, stream, params,
               plan);
    };
    if (plan.row_tiles == 1)
        start(std::integral_constant<int, 1>());
    else if (plan.row_tiles == 2)
        start(std::integral_constant<int, 2>());
    else
        start(std::integral_constant<int, 4>());
}

}  // namespace ferry
