// Absorbed attention over the paged latent cache. The heads of a row are the M dimension of the
// tensor-core products, so that a latent is read from memory once for all heads: blocks of the same
// keys are neighbours in the grid and meet in L2.
//
// A row's keys are cut into splits at absolute positions, of a length that depends on the row's
// number of keys only (decode_split_keys). attend_split takes up to 64 heads of a row through one
// split, 64 keys at a time with a running maximum (FlashAttention-2 order); merge_splits adds the
// splits in order. Nothing depends on what else is in the batch or on the GPU's size. Queries and
// probabilities are rounded to bf16, sums are f32.
//
// What bounds it (128 heads, bf16): 2 * 128 * (576 + 512) flop per latent of 1152 bytes, 242
// flop/byte, where H100 has about 300 with wgmma and 185 with the mma.sync used here. So up to 64
// heads memory is the bound, with 128 heads the tensor cores and the shared memory that feeds them.
//
// Hopper has a kernel of its own in the place of attend_split (mla_decode_wgmma.cu).
// A cache of f32 or of other widths goes through attend_split_plain: f32 throughout.
#include <cfloat>

#include "base/cuda_launch.h"
#include "layers/cuda/mla_split.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/tiles.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

constexpr int kLatent = kMlaLatent, kRope = kMlaRope, kWidth = kLatent + kRope;
constexpr int kPitch = kWidth * 2;  // bytes of a key or query in shared memory
constexpr int kChunks = kPitch / 16;
constexpr int kKeys = kTileKeys;
constexpr int kThreads = kDecodeThreads, kWarps = kThreads / 32;

// ---- Tensor cores: bf16 cache of 512 + 64

template <int kRowTiles>
struct DecodeBlock {
    static constexpr int kHeads = 16 * kRowTiles;
    static constexpr int kColumnWarps = kWarps / kRowTiles;  // that share the scores of 16 heads
    static constexpr int kColumnTiles = kKeys / kColumnWarps / 8;
    static constexpr int kQueries = 0;
    static constexpr int kPages = kQueries + kHeads * kPitch;
    static constexpr int kPageBytes = kKeys * kPitch;
};

// Keys [0, num_keys) of a page; the others become zeros.
__device__ void load_page(std::byte* to, const std::byte* page, int num_keys) {
#pragma unroll 3
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
        const int key = i / kChunks, chunk = i % kChunks;
        copy_async(to + tile_offset(key, chunk, kPitch), page + key * kPitch + chunk * 16,
                   key < num_keys);
    }
    commit_copies();
}

// The same of keys that lie apart.
__device__ void load_chosen(std::byte* to, const DecodeParams& p, const DecodeRow& row,
                            const int32_t* positions, int num_keys) {
#pragma unroll 3
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
        const int key = i / kChunks, chunk = i % kChunks;
        const int position = key < num_keys ? positions[key] : positions[0];
        const int64_t page = p.pages[row.first_page + position / kKeys];
        copy_async(to + tile_offset(key, chunk, kPitch),
                   static_cast<const std::byte*>(p.cache) +
                       (page * kKeys + position % kKeys) * kPitch + chunk * 16,
                   key < num_keys);
    }
    commit_copies();
}

template <int kHeads>
__device__ void load_queries(std::byte* to, const float* latent, const float* rope, int num_heads) {
#pragma unroll 2
    for (int i = threadIdx.x; i < kHeads * kChunks; i += kThreads) {
        const int head = i / kChunks, chunk = i % kChunks, column = chunk * 8;
        uint4 packed = make_uint4(0, 0, 0, 0);
        if (head < num_heads) {
            const float* from = column < kLatent ? latent + head * kLatent + column
                                                 : rope + head * kRope + (column - kLatent);
            const float4 a = reinterpret_cast<const float4*>(from)[0];
            const float4 b = reinterpret_cast<const float4*>(from)[1];
            packed = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                                pack_bf16(b.z, b.w));
        }
        *reinterpret_cast<uint4*>(to + tile_offset(head, chunk, kPitch)) = packed;
    }
}

template <int kRowTiles, int kStages>
__global__ __launch_bounds__(kThreads, 1) void attend_split(DecodeParams p) {
    using Block = DecodeBlock<kRowTiles>;
    constexpr int kHeads = Block::kHeads, kColumnWarps = Block::kColumnWarps;
    constexpr int kColumnTiles = Block::kColumnTiles;
    const DecodeRow row = p.rows[blockIdx.z];
    const int split = blockIdx.y;
    if (split >= row.num_splits) {
        if (row.num_splits == 0 && split == 0)
            store_zeros(p, row, static_cast<int>(blockIdx.x) * kHeads,
                        min(static_cast<int>(blockIdx.x + 1) * kHeads, p.heads));
        return;
    }

    FERRY_DYNAMIC_SHARED(queries);
    std::byte* const pages = queries + Block::kPages;
    std::byte* const probabilities = pages + kStages * Block::kPageBytes;  // [kHeads, kKeys] bf16
    float* const maxima = reinterpret_cast<float*>(probabilities + kHeads * kKeys * 2);
    float* const corrections = maxima + kColumnWarps * kHeads;  // maxima: [kColumnWarps, kHeads]

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first_head = blockIdx.x * kHeads;
    const int first_key = split * row.split_keys;
    const int num_keys = min(row.num_keys - first_key, row.split_keys);
    const int num_tiles = (num_keys + kKeys - 1) / kKeys;
    const auto load_tile = [&](int tile) {
        std::byte* const to = pages + tile % kStages * Block::kPageBytes;
        const int begin = first_key + tile * kKeys, num = num_keys - tile * kKeys;
        if (p.chosen != nullptr)
            load_chosen(to, p, row, p.chosen + row.batch_row * p.chosen_stride + begin, num);
        else
            load_page(to,
                      static_cast<const std::byte*>(p.cache) +
                          static_cast<int64_t>(p.pages[row.first_page + begin / kKeys]) *
                              Block::kPageBytes,
                      num);
    };
    load_tile(0);
    load_queries<kHeads>(
        queries, p.q_latent + row.batch_row * p.q_latent_stride + first_head * kLatent,
        p.q_rope + row.batch_row * p.q_rope_stride + first_head * kRope, p.heads - first_head);

    // Scores: warp (m, n) has heads [16 m, 16 m + 16) and keys [first_column, ...). Values: each
    // warp has all heads and 64 columns.
    const int score_row = warp / kColumnWarps * 16, column_warp = warp % kColumnWarps;
    const int first_column = column_warp * kColumnTiles * 8;
    const int first_chunk = warp * (kLatent / kWarps / 8);
    float out[kRowTiles][8][4] = {};
    float maximum[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};  // of rows g and g + 8

    for (int tile = 0; tile < num_tiles; ++tile) {
        wait_for_copies<0>();
        __syncthreads();
        if (kStages > 1 && tile + 1 < num_tiles) load_tile(tile + 1);
        const std::byte* page = pages + tile % kStages * Block::kPageBytes;

        float scores[kColumnTiles][4] = {};
#pragma unroll 6
        for (int chunk = 0; chunk < kChunks; chunk += 4) {
            uint32_t a0[4], a1[4];
            load_a(a0, queries, score_row, chunk, kPitch, lane);
            load_a(a1, queries, score_row, chunk + 2, kPitch, lane);
#pragma unroll
            for (int n = 0; n < kColumnTiles; ++n) {
                uint32_t b[4];
                load_b(b, page, first_column + n * 8, chunk, kPitch, lane);
                multiply_add(scores[n], a0, b[0], b[1]);
                multiply_add(scores[n], a1, b[2], b[3]);
            }
        }

        float highest[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = tile * kKeys + first_column + n * 8 + 2 * t + i % 2;
                scores[n][i] = key < num_keys ? scores[n][i] * p.scale_log2 : -INFINITY;
                highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            highest[half] = quad_max(highest[half]);
            if (t == 0) maxima[column_warp * kHeads + score_row + g + 8 * half] = highest[half];
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int head = score_row + g + 8 * half;
            float new_maximum = maximum[half];
#pragma unroll
            for (int n = 0; n < kColumnWarps; ++n)
                new_maximum = fmaxf(new_maximum, maxima[n * kHeads + head]);
            const float correction = exp2f(maximum[half] - new_maximum);
            maximum[half] = new_maximum;
            sum[half] *= correction;
            if (column_warp == 0 && t == 0) corrections[head] = correction;
#pragma unroll
            for (int n = 0; n < kColumnTiles; ++n) {
                const float p0 = exp2f(scores[n][2 * half] - new_maximum);
                const float p1 = exp2f(scores[n][2 * half + 1] - new_maximum);
                sum[half] += p0 + p1;
                *reinterpret_cast<uint32_t*>(
                    probabilities + tile_offset(head, first_column / 8 + n, kKeys * 2) + 4 * t) =
                    pack_bf16(p0, p1);
            }
        }
        __syncthreads();

#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
            const float upper = corrections[m * 16 + g], lower = corrections[m * 16 + g + 8];
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                out[m][n][0] *= upper;
                out[m][n][1] *= upper;
                out[m][n][2] *= lower;
                out[m][n][3] *= lower;
            }
        }
#pragma unroll
        for (int k = 0; k < kKeys; k += 16) {
            uint32_t a[kRowTiles][4];
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m)
                load_a(a[m], probabilities, m * 16, k / 8, kKeys * 2, lane);
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t b[4];
                load_b_transposed(b, page, k, first_chunk + n, kPitch, lane);
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
                    multiply_add(out[m][n], a[m], b[0], b[1]);
                    multiply_add(out[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if (kStages == 1 && tile + 1 < num_tiles) {
            __syncthreads();
            load_tile(tile + 1);
        }
    }

    // The sums of a head lie with the warps that had its keys.
    float* const sums = maxima;
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        sum[half] = quad_sum(sum[half]);
        if (t == 0) sums[column_warp * kHeads + score_row + g + 8 * half] = sum[half];
    }
    __syncthreads();
    const bool whole = row.num_splits == 1;
    const int64_t slot = row.first_slot + split;
    float* const to =
        whole ? p.out + row.batch_row * p.out_stride : p.partial_out + slot * p.heads * kLatent;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int head = score_row + g + 8 * half;
        if (whole || column_warp != 0 || t != 0 || first_head + head >= p.heads) continue;
        float total = 0;
#pragma unroll
        for (int n = 0; n < kColumnWarps; ++n) total += sums[n * kHeads + head];
        store_sums(p, slot, first_head + head, maximum[half], total);
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int head = m * 16 + g + 8 * half;
            if (first_head + head >= p.heads) continue;
            float factor = 1;
            if (whole) {
                float total = 0;
#pragma unroll
                for (int n = 0; n < kColumnWarps; ++n) total += sums[n * kHeads + head];
                factor = 1 / total;
            }
            float* const columns = to + (first_head + head) * kLatent + first_chunk * 8 + 2 * t;
#pragma unroll
            for (int n = 0; n < 8; ++n)
                *reinterpret_cast<float2*>(columns + n * 8) =
                    make_float2(out[m][n][2 * half] * factor, out[m][n][2 * half + 1] * factor);
        }
}

// ---- Any cache: a block takes one head of a row through one split, in f32

template <typename Value>
__device__ inline float to_f32(Value value) {
    if constexpr (sizeof(Value) == 2)
        return __uint_as_float(static_cast<uint32_t>(value) << 16);
    else
        return value;
}

template <typename Value>
__global__ __launch_bounds__(kPlainThreads) void attend_split_plain(DecodeParams p) {
    const DecodeRow row = p.rows[blockIdx.z];
    const int head = blockIdx.x, split = blockIdx.y, width = p.kv_lora + p.rope;
    if (split >= row.num_splits) {
        if (row.num_splits == 0 && split == 0) store_zeros(p, row, head, head + 1);
        return;
    }
    FERRY_DYNAMIC_SHARED(memory);
    float* const query = reinterpret_cast<float*>(memory);  // [width]
    float* const out = query + width;                       // [kv_lora]
    float* const scores = out + p.kv_lora;                  // [kKeys]
    for (int i = threadIdx.x; i < width; i += kPlainThreads)
        query[i] = i < p.kv_lora ? p.q_latent[row.batch_row * p.q_latent_stride +
                                              static_cast<int64_t>(head) * p.kv_lora + i]
                                 : p.q_rope[row.batch_row * p.q_rope_stride +
                                            static_cast<int64_t>(head) * p.rope + i - p.kv_lora];
    for (int i = threadIdx.x; i < p.kv_lora; i += kPlainThreads) out[i] = 0;

    const int first_key = split * row.split_keys;
    const int end_key = min(row.num_keys, first_key + row.split_keys);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float maximum = -FLT_MAX, sum = 0;
    for (int begin = first_key; begin < end_key; begin += kKeys) {
        const int num_keys = min(kKeys, end_key - begin);
        const auto latent = [&](int key) {
            const int position = p.chosen != nullptr
                                     ? p.chosen[row.batch_row * p.chosen_stride + begin + key]
                                     : begin + key;
            const int64_t page = p.pages[row.first_page + position / kKeys];
            return static_cast<const Value*>(p.cache) + (page * kKeys + position % kKeys) * width;
        };
        __syncthreads();
        for (int key = warp; key < num_keys; key += kPlainThreads / 32) {
            float dot = 0;
            for (int i = lane; i < width; i += 32)
                dot = fmaf(query[i], to_f32(latent(key)[i]), dot);
            dot = warp_sum(dot);
            if (lane == 0) scores[key] = dot * p.scale_log2;
        }
        __syncthreads();
        float new_maximum = maximum;
        for (int key = 0; key < num_keys; ++key) new_maximum = fmaxf(new_maximum, scores[key]);
        const float correction = exp2f(maximum - new_maximum);
        maximum = new_maximum;
        sum *= correction;
        for (int key = 0; key < num_keys; ++key) sum += exp2f(scores[key] - maximum);
        for (int i = threadIdx.x; i < p.kv_lora; i += kPlainThreads) {
            float value = out[i] * correction;
            for (int key = 0; key < num_keys; ++key)
                value = fmaf(exp2f(scores[key] - maximum), to_f32(latent(key)[i]), value);
            out[i] = value;
        }
    }
    const bool whole = row.num_splits == 1;
    const int64_t slot = row.first_slot + split;
    float* const to =
        whole ? p.out + row.batch_row * p.out_stride + static_cast<int64_t>(head) * p.kv_lora
              : p.partial_out + (slot * p.heads + head) * p.kv_lora;
    for (int i = threadIdx.x; i < p.kv_lora; i += kPlainThreads)
        to[i] = whole ? out[i] / sum : out[i];
    if (!whole && threadIdx.x == 0) store_sums(p, slot, head, maximum, sum);
}

// ---- One block per head and row that has more than one split; kWidth columns of a thread at once
template <int kWidth>
__global__ __launch_bounds__(kMergeThreads, 8) void merge_splits(DecodeParams p) {
    const DecodeRow row = p.rows[blockIdx.y];
    if (row.num_splits <= 1) return;
    FERRY_DYNAMIC_SHARED(memory);
    float* const scratch = reinterpret_cast<float*>(memory);  // [kWarpThreads]
    float* const factors = scratch + kWarpThreads;            // [num_splits]
    const int head = blockIdx.x;
    const int64_t step = static_cast<int64_t>(p.heads) * 2;  // from split to split
    const float* const sums = p.partial_sums + row.first_slot * step + head * 2;

    float maximum = -FLT_MAX, total = 0;
    for (int i = threadIdx.x; i < row.num_splits; i += kMergeThreads)
        maximum = fmaxf(maximum, sums[i * step]);
    maximum = block_max(maximum, scratch);
    __syncthreads();
    for (int i = threadIdx.x; i < row.num_splits; i += kMergeThreads) {
        factors[i] = exp2f(sums[i * step] - maximum);
        total = fmaf(factors[i], sums[i * step + 1], total);
    }
    const float scale = 1 / block_sum(total, scratch);
    __syncthreads();

    const int64_t next = static_cast<int64_t>(p.heads) * p.kv_lora;
    const float* const parts = p.partial_out + row.first_slot * next + head * p.kv_lora;
    float* const out = p.out + row.batch_row * p.out_stride + head * p.kv_lora;
    for (int i = threadIdx.x * kWidth; i < p.kv_lora; i += kMergeThreads * kWidth) {
        FloatVector<kWidth> sum{};
#pragma unroll 4
        for (int split = 0; split < row.num_splits; ++split) {
            const FloatVector<kWidth> part = load<kWidth>(parts + split * next + i);
#pragma unroll
            for (int j = 0; j < kWidth; ++j)
                sum.values[j] = fmaf(part.values[j], factors[split], sum.values[j]);
        }
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum.values[j] *= scale;
        store(sum, out + i);
    }
}

}  // namespace

void launch_decode(const DecodeParams& params, const DecodeGrid& grid, CUstream_st* stream) {
    const auto run = [&](auto kernel, int threads) {
        launch(
            kernel,
            {.grid = {static_cast<unsigned>(grid.head_blocks),
                      static_cast<unsigned>(grid.num_splits), static_cast<unsigned>(grid.num_rows)},
             .block = {static_cast<unsigned>(threads)},
             .shared_bytes = static_cast<size_t>(grid.shared_bytes)},
            stream, params);
    };
    if (grid.wgmma)
        launch_attend_wgmma(params, grid, stream);
    else if (grid.row_tiles == 0)
        run(grid.bf16_cache ? attend_split_plain<uint16_t> : attend_split_plain<float>,
            kPlainThreads);
    else if (grid.num_stages == 1)
        run(grid.row_tiles == 1   ? attend_split<1, 1>
            : grid.row_tiles == 2 ? attend_split<2, 1>
                                  : attend_split<4, 1>,
            kThreads);
    else
        run(grid.row_tiles == 1   ? attend_split<1, 2>
            : grid.row_tiles == 2 ? attend_split<2, 2>
                                  : attend_split<4, 2>,
            kThreads);
    if (grid.num_splits > 1) {
        // Whole 16 bytes: factors are read several at once.
        const auto factors = static_cast<size_t>((grid.num_splits + 3) / 4 * 4);
        launch(
            grid.row_tiles == 0 && !grid.wgmma ? merge_splits<1> : merge_splits<kFloatsPerVector>,
            {.grid = {static_cast<unsigned>(params.heads), static_cast<unsigned>(grid.num_rows)},
             .block = {kMergeThreads},
             .shared_bytes = (kWarpThreads + factors) * sizeof(float)},
            stream, params);
    }
}

}  // namespace ferry
