// A warp multiplies 16 rows of the weights, the A operand of mma.m16n8k16, by up to 32 rows of x,
// the B operand. Both go through shared memory of the warp's own, 128 values of each row at a time,
// some such blocks ahead. Which of 16 neighbouring values of `in` a fragment's register holds does
// not matter as long as A and B agree: lane (g, t) takes 16 values from 16 t on of rows g and g +
// 8, and of row g of x. Values of fp8 are widened exactly, to f16 beside fp8 rows and to bf16
// beside bf16 rows; sums of 64 are scaled and added in f32.
#include "base/cuda_launch.h"
#include "layers/cuda/few_rows.h"
#include "layers/cuda/tiles.h"

namespace ferry {
namespace {

struct __align__(16) Chunk {
    uint32_t words[4];
};

// 16 values of a row of x.
template <bool kFp8>
struct Values {
    uint32_t words[kFp8 ? 4 : 8];
};

template <bool kFp8>
__device__ __forceinline__ void widen(uint32_t values, uint32_t& low, uint32_t& high) {
    if constexpr (kFp8)
        widen_e4m3_to_f16(values, low, high);
    else
        widen_e4m3(values, low, high);
}

// Rows in shared memory, of 128 or 256 bytes in chunks of 16. Lanes of two rows read at once:
// chunks of every other row change places so that they lie in different banks.
template <bool kFp8>
__device__ __forceinline__ int tile_at(int row, int chunk) {
    return row * (kFp8 ? 128 : 256) + ((chunk ^ (row & 1) << (kFp8 ? 2 : 0)) << 4);
}
constexpr int kWeightBytes = kFewRowsOut * kFewRowsBlock;

// A lane's copies of weights: chunk lane % 8 of rows lane / 8, 4 more, ...
class WeightCopies {
  public:
    __device__ WeightCopies(const FewRowsParams& p, int first_out, int lane)
        : in_(p.in), column_(16 * (lane % 8)), to_(tile_at<true>(lane / 8, lane % 8)) {
        // Rows that are not there are the last one's again: their sums are not stored.
#pragma unroll
        for (int i = 0; i < 4; ++i)
            from_[i] = p.w + min(first_out + 4 * i + lane / 8, p.out - 1) * p.w_stride + column_;
    }
    __device__ void start(int block, std::byte* tile) const {
        const int begin = block * kFewRowsBlock;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            copy_async(tile + to_ + 4 * i * 128, from_[i] + begin, begin + column_ < in_);
    }

  private:
    int in_, column_, to_;
    const uint8_t* from_[4];
};

// The same of x, whose rows are 8 or 16 chunks. Those that are not there are zeros.
template <int kRowTiles, bool kFp8>
class RowCopies {
  public:
    __device__ RowCopies(const FewRowsParams& p, int lane)
        : p_(p),
          row_(lane / kChunks),
          column_(16 / kValueBytes * (lane % kChunks)),
          to_(tile_at<kFp8>(row_, lane % kChunks)),
          from_(static_cast<const std::byte*>(p.x) + kValueBytes * (row_ * p.x_stride + column_)) {}
    __device__ void start(int block, std::byte* tile) const {
        const int begin = block * kFewRowsBlock;
#pragma unroll
        for (int i = 0; i < 8 * kRowTiles / kRows; ++i) {
            const bool valid = row_ + i * kRows < p_.rows && begin + column_ < p_.in;
            const int64_t offset = valid ? kValueBytes * (i * kRows * p_.x_stride + begin) : 0;
            copy_async_shared(tile + to_ + i * kRows * kChunks * 16, from_ + offset, valid);
        }
    }

  private:
    static constexpr int kValueBytes = kFp8 ? 1 : 2, kChunks = 8 * kValueBytes;
    static constexpr int kRows = 32 / kChunks;  // at once
    const FewRowsParams& p_;
    int row_, column_, to_;
    const std::byte* from_;
};

// A lane's weights of half a block, rows g and g + 8, and the same as A fragments of four steps.
struct Weights {
    Chunk low, high;
};
struct Fragments {
    uint32_t a[4][4];
};
__device__ __forceinline__ Weights load_weights(const std::byte* tile, int lane, int half) {
    const int g = lane / 4, chunk = 4 * half + lane % 4;
    return {*reinterpret_cast<const Chunk*>(tile + tile_at<true>(g, chunk)),
            *reinterpret_cast<const Chunk*>(tile + tile_at<true>(g + 8, chunk))};
}
template <bool kFp8>
__device__ __forceinline__ Fragments widen(const Weights& weights) {
    Fragments fragments;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        auto& a = fragments.a[step];
        widen<kFp8>(weights.low.words[step], a[0], a[2]);
        widen<kFp8>(weights.high.words[step], a[1], a[3]);
    }
    return fragments;
}

template <bool kFp8>
__device__ __forceinline__ Values<kFp8> load_rows(const std::byte* tile, int lane, int half) {
    constexpr int kChunks = kFp8 ? 1 : 2;
    Values<kFp8> values;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
        const int chunk = kChunks * (4 * half + lane % 4) + i;
        const Chunk words = *reinterpret_cast<const Chunk*>(tile + tile_at<kFp8>(lane / 4, chunk));
#pragma unroll
        for (int j = 0; j < 4; ++j) values.words[4 * i + j] = words.words[j];
    }
    return values;
}

// sums += scales * (weights by rows), over half a block. scales: of the lane's two columns of D.
template <bool kFp8>
__device__ __forceinline__ void multiply(float (&sums)[4], const Fragments& fragments,
                                         const Values<kFp8>& rows, float2 scales) {
    float part[4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint32_t b[2];
        if constexpr (kFp8) {
            widen_e4m3_to_f16(rows.words[step], b[0], b[1]);
            mma_f16(part, fragments.a[step], b);
        } else {
            b[0] = rows.words[2 * step];
            b[1] = rows.words[2 * step + 1];
            mma_bf16(part, fragments.a[step], b);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = fmaf(part[i], i % 2 == 0 ? scales.x : scales.y, sums[i]);
}

// scales[block][row]: what sums are multiplied by. All outputs of a thread block lie in one
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
    constexpr int kPart = kFewRowsWarpBytes / 4;  // floats from part to part
    const int num = plan.out_tiles * kRowTiles * 128;
    for (int at = static_cast<int>(threadIdx.x); at < num; at += static_cast<int>(blockDim.x)) {
        const int out = at % kFewRowsOut, row = at / kFewRowsOut % (8 * kRowTiles);
        const int tile = at / (kRowTiles * 128);
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
__global__ __launch_bounds__(32 * kFewRowsMostWarps, 1) void few_rows(FewRowsParams p,
                                                                      FewRowsPlan plan) {
    constexpr int kStages = few_rows_stages(kRowTiles, kFp8);
    constexpr int kStageBytes = few_rows_stage_bytes(kRowTiles, kFp8);
    constexpr int kTileBytes = 8 * kFewRowsBlock * (kFp8 ? 1 : 2);  // of x
    FERRY_DYNAMIC_SHARED(memory);
    auto* const scales =
        reinterpret_cast<float*>(memory + plan.out_tiles * plan.in_warps * kFewRowsWarpBytes);
    const int id = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    std::byte* const stages = memory + id * kFewRowsWarpBytes;
    const int first_out = static_cast<int>(blockIdx.x) * plan.out_tiles * kFewRowsOut;
    const WeightCopies weights(p, first_out + id / plan.in_warps * kFewRowsOut, lane);
    const RowCopies<kRowTiles, kFp8> x(p, lane);
    const int num_blocks = (p.in + kFewRowsBlock - 1) / kFewRowsBlock;
    const int first = id % plan.in_warps, step = plan.in_warps;

    let_next_kernel_start();
#pragma unroll
    for (int i = 0; i < kStages; ++i)
        if (first + i * step < num_blocks)
            weights.start(first + i * step, stages + i * kStageBytes);
    wait_for_earlier_kernels();  // which made x; weights are older
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
        if (first + i * step < num_blocks)
            x.start(first + i * step, stages + i * kStageBytes + kWeightBytes);
        commit_copies();
    }
    float sums[kRowTiles][4] = {};
    collect_scales<kRowTiles, kFp8>(p, first_out, scales);
    __syncthreads();
    std::byte* stage = stages;
#pragma unroll 1
    for (int block = first; block < num_blocks; block += step) {
        wait_for_copies<kStages - 1>();
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Fragments fragments = widen<kFp8>(load_weights(stage, lane, half));
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i)
                multiply(sums[i], fragments,
                         load_rows<kFp8>(stage + kWeightBytes + i * kTileBytes, lane, half),
                         *reinterpret_cast<const float2*>(
                             &scales[(block * kRowTiles + i) * 8 + 2 * (lane % 4)]));
        }
        __syncwarp();  // all have read what is written over now
        if (const int next = block + kStages * step; next < num_blocks) {
            weights.start(next, stage);
            x.start(next, stage + kWeightBytes);
        }
        commit_copies();
        stage =
            stage + kStageBytes == stages + kStages * kStageBytes ? stages : stage + kStageBytes;
    }
    // Over the warp's own stages, which nobody needs any more.
    wait_for_copies<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
        reinterpret_cast<float4*>(stages)[i * 32 + lane] =
            make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    __syncthreads();
    add_parts<kRowTiles>(p, plan, reinterpret_cast<const float*>(memory), first_out);
}

}  // namespace

void launch_few_rows(const FewRowsParams& params, const FewRowsPlan& plan, CUstream_st* stream) {
    const LaunchShape shape = few_rows_shape(plan, params.out, params.in);
    const bool fp8 = params.x_scales != nullptr;
    const auto start = [&](auto row_tiles) {
        launch_early(fp8 ? few_rows<row_tiles, true> : few_rows<row_tiles, false>, shape, stream,
                     params, plan);
    };
    if (plan.row_tiles == 1)
        start(std::integral_constant<int, 1>());
    else if (plan.row_tiles == 2)
        start(std::integral_constant<int, 2>());
    else
        start(std::integral_constant<int, 4>());
}

}  // namespace ferry
