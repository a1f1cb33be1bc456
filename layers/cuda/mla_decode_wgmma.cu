// Absorbed attention of up to 64 heads of a row through one split on Hopper's tensor cores, in two
// roles that hand tiles of 64 keys on to each other:
//  - Warpgroup 0 makes scores. It has seven ninths of the queries in registers, as A of the
//    products: of shared memory, which feeds the tensor cores at their own pace and no faster, they
//    take the keys only. Its softmax leaves probabilities and corrections in shared memory.
//  - Warpgroups 1 and 2 sum values: each has half of the results' columns, 64 heads x 256.
// So the scores of a tile and the values of the one before share the tensor cores, and the values'
// second half runs beneath the softmax. Latents of three pages are in shared memory or on their
// way.
//
// The maximum that exponents refer to follows only when it is exceeded by a factor of 2^8:
// probabilities stay below 2^8, and results are hardly ever rescaled.
//
// What bounds it: 2 * 64 * 64 * (576 + 512) flop a tile are 2176 cycles of a multiprocessor's
// tensor cores; its 73.7 KB come from memory in about as long as 64 heads take. Fewer heads than 64
// cost as much and wait for memory.
#include <cfloat>

#include "base/check.h"
#include "base/cuda_launch.h"
#include "layers/cuda/bulk_copy.h"
#include "layers/cuda/fast_exp.h"
#include "layers/cuda/mla_split.h"
#include "layers/cuda/tiles.h"

namespace ferry {
namespace {

constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup;
constexpr int kWidth = kMlaLatent + kMlaRope, kKeys = kTileKeys, kPanelColumns = 64;

#ifdef FERRY_WGMMA

constexpr int kHeads = kWgmmaHeads, kPanelBytes = kKeys * 128;
constexpr int kPanels = kWidth / kPanelColumns, kLatentPanels = kMlaLatent / kPanelColumns;
constexpr int kLatentBytes = kLatentPanels * kPanelBytes;
constexpr int kLatentStages = kWgmmaLatentStages, kRopeStages = kWgmmaRopeStages;
constexpr int kSharedQueryPanels = kWgmmaQueryPanels, kQueryPanels = kPanels - kSharedQueryPanels;
constexpr int kPanelSteps = kPanelColumns / 16, kValueSteps = kKeys / 16;
constexpr int kEarlySteps = 2;  // of the values: the others wait for the next scores
constexpr float kSlack = 8;     // of a maximum, in log2

// Barriers. kProbable and kCleared: and the next.
constexpr int kScored = 1, kProbable = 2, kCleared = 4, kSummed = 6, kRead = 7, kFree = 8;

// What a block does.
struct Split {
    DecodeRow row;
    int first_head, first_key, num_keys, num_tiles, index;

    __device__ bool whole() const { return row.num_splits == 1; }
    __device__ int64_t slot() const { return row.first_slot + index; }
};

// Shared memory of a block, in panels of 64 columns (wgmma.h). Of a page, the rotated part is read
// by the scores only: the probabilities take its place.
struct Shared {
    std::byte* latents;  // [kLatentStages][8 panels of 64 keys]
    std::byte* ropes;    // [kRopeStages] panels of 64 keys, then [64 heads, 64 keys]
    std::byte* queries;  // the last [kSharedQueryPanels] panels of 64 heads
    float* corrections;  // [2][64], of results that were summed so far
    float* sums;         // [64]
    int32_t* pages;      // [kWgmmaMostTiles] of the split
    uint64_t* arrivals;  // [kLatentStages] of latents, [kRopeStages] of ropes

    __device__ explicit Shared(std::byte* memory)
        : latents(memory),
          ropes(latents + kLatentStages * kLatentBytes),
          queries(ropes + kRopeStages * kPanelBytes),
          corrections(reinterpret_cast<float*>(queries + kSharedQueryPanels * kPanelBytes)),
          sums(corrections + 2 * kHeads),
          pages(reinterpret_cast<int32_t*>(sums + kHeads)),
          arrivals(reinterpret_cast<uint64_t*>(pages + kWgmmaMostTiles)) {}
    __device__ std::byte* latent(int tile) const {
        return latents + tile % kLatentStages * kLatentBytes;
    }
    __device__ std::byte* rope(int tile) const { return ropes + tile % kRopeStages * kPanelBytes; }
    __device__ float* correction(int tile) const { return corrections + tile % 2 * kHeads; }
    __device__ uint64_t* latent_arrivals(int tile) const { return arrivals + tile % kLatentStages; }
    __device__ uint64_t* rope_arrivals(int tile) const {
        return arrivals + kLatentStages + tile % kRopeStages;
    }
    __device__ void wait_for_latent(int tile) const {
        wait_for_arrivals(latent_arrivals(tile), tile / kLatentStages & 1);
    }
    __device__ void wait_for_rope(int tile) const {
        wait_for_arrivals(rope_arrivals(tile), tile / kRopeStages & 1);
    }
};

// The queries of the block's heads: those that go to registers where the last latents will be.
__device__ __forceinline__ void load_queries(const DecodeParams& p, const Split& split,
                                             const Shared& shared) {
    constexpr int kChunks = kWidth / 8;
    const float* const latent = p.q_latent + split.row.batch_row * p.q_latent_stride;
    const float* const rope = p.q_rope + split.row.batch_row * p.q_rope_stride;
    static_assert(kHeads * kChunks % kThreads == 0);
#pragma unroll
    for (int step = 0; step < kHeads * kChunks / kThreads; ++step) {
        const int i = step * kThreads + static_cast<int>(threadIdx.x);
        const int head = i / kChunks, chunk = i % kChunks, column = chunk * 8;
        const int of_row = split.first_head + head;
        uint4 packed = make_uint4(0, 0, 0, 0);
        if (of_row < p.heads) {
            const float* const from = column < kMlaLatent
                                          ? latent + of_row * kMlaLatent + column
                                          : rope + of_row * kMlaRope + (column - kMlaLatent);
            const float4 a = reinterpret_cast<const float4*>(from)[0];
            const float4 b = reinterpret_cast<const float4*>(from)[1];
            packed = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                                pack_bf16(b.z, b.w));
        }
        const int panel = chunk / 8;
        std::byte* const to = panel < kQueryPanels
                                  ? shared.latent(kLatentStages - 1) + panel * kPanelBytes
                                  : shared.queries + (panel - kQueryPanels) * kPanelBytes;
        *reinterpret_cast<uint4*>(to + tile_offset(head, chunk % 8, 128)) = packed;
    }
}

// ---- Warpgroup 0
__device__ __forceinline__ void score(const DecodeParams& p, const Split& split,
                                      const Shared& shared) {
    const int thread = threadIdx.x % kWarpgroup, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int upper = thread / 32 * 16 + g;  // heads of the block: upper and upper + 8
    uint32_t query[kQueryPanels * kPanelSteps][4];
#pragma unroll
    for (int k = 0; k < kQueryPanels * kPanelSteps; ++k)
        load_a(query[k], shared.latent(kLatentStages - 1) + k / kPanelSteps * kPanelBytes,
               thread / 32 * 16, k % kPanelSteps * 2, 128, lane);
    fence_async_proxy();
    const SharedTile queries = tile_by_rows(shared.queries);

    float maximum[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};
    for (int tile = 0; tile < split.num_tiles; ++tile) {
        shared.wait_for_latent(tile);
        const SharedTile keys = tile_by_rows(shared.latent(tile));
        const SharedTile rotated = tile_by_rows(shared.rope(tile));
        float scores[kKeys / 2];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kQueryPanels * kPanelSteps; ++k)
            wgmma_bf16<kKeys>(scores, query[k],
                              keys.plus(k / kPanelSteps * kPanelBytes + k % kPanelSteps * 32),
                              k > 0);
#pragma unroll
        for (int panel = kQueryPanels; panel < kPanels; ++panel) {
            if (panel == kLatentPanels) {
                shared.wait_for_rope(tile);
                wgmma_fence();
            }
            const SharedTile b = panel == kLatentPanels ? rotated : keys.plus(panel * kPanelBytes);
            const SharedTile a = queries.plus((panel - kQueryPanels) * kPanelBytes);
#pragma unroll
            for (int k = 0; k < kPanelSteps; ++k)
                wgmma_bf16<kKeys>(scores, a.plus(k * 32), b.plus(k * 32));
        }
        wgmma_commit();
        wgmma_wait<0>();
        if (tile > 0) named_barrier_arrive(kScored, kThreads);

        const int keys_left = split.num_keys - tile * kKeys;
        if (keys_left < kKeys) {
#pragma unroll
            for (int i = 0; i < kKeys / 2; ++i)
                if (i / 4 * 8 + 2 * t + i % 2 >= keys_left) scores[i] = -INFINITY;
        }
        float correction[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j)
                highest =
                    fmaxf(highest, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
            highest = quad_max(highest) * p.scale_log2;
            const float reference = highest > maximum[half] + kSlack ? highest : maximum[half];
            correction[half] = fast_exp2(maximum[half] - reference);
            maximum[half] = reference;
            sum[half] *= correction[half];
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
                for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) {
                    scores[i] = fast_exp2(fmaf(scores[i], p.scale_log2, -reference));
                    sum[half] += scores[i];
                }
        }
        named_barrier(kRead, kWarpgroup);  // the rotated part, by all warps
        std::byte* const probabilities = shared.rope(tile);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int head = upper + 8 * half;
            if (t == 0) shared.correction(tile)[head] = correction[half];
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j)
                *reinterpret_cast<uint32_t*>(probabilities + tile_offset(head, j, 128) + 4 * t) =
                    pack_bf16(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]);
        }
        fence_async_proxy();
        named_barrier_arrive(kProbable + tile % 2, kThreads);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int head = upper + 8 * half;
        const float total = quad_sum(sum[half]);
        if (t != 0) continue;
        shared.sums[head] = total;
        if (!split.whole() && split.first_head + head < p.heads)
            store_sums(p, split.slot(), split.first_head + head, maximum[half], total);
    }
    named_barrier_arrive(kSummed, kThreads);
}

// ---- Warpgroups 1 and 2

// Zeros in the columns of this warpgroup from row `from` of a page on: 0 times what lies there may
// be NaN.
__device__ inline void clear_keys(std::byte* panels, int from, int thread, int half) {
    for (int i = thread; i < (kKeys - from) * 32; i += kWarpgroup)
        *reinterpret_cast<uint4*>(panels + i / 8 % 4 * kPanelBytes + (from + i / 32) * 128 +
                                  i % 8 * 16) = make_uint4(0, 0, 0, 0);
    fence_async_proxy();
    named_barrier(kCleared + half, kWarpgroup);
}

// By one thread. The rotated part of a page comes later, when there is room for it.
__device__ __forceinline__ void load_latents(const TensorMap& map, const Shared& shared, int tile) {
    uint64_t* const arrivals = shared.latent_arrivals(tile);
    std::byte* const to = shared.latent(tile);
    const int row = shared.pages[tile] * kKeys;
    arrive_with_bytes(arrivals, kLatentBytes);
#pragma unroll
    for (int panel = 0; panel < kLatentPanels; ++panel)
        copy_box(to + panel * kPanelBytes, map, panel * kPanelColumns, row, arrivals);
    prefetch_box(map, kMlaLatent, row);
}
__device__ __forceinline__ void load_rope(const TensorMap& map, const Shared& shared, int tile) {
    uint64_t* const arrivals = shared.rope_arrivals(tile);
    arrive_with_bytes(arrivals, kPanelBytes);
    copy_box(shared.rope(tile), map, kMlaLatent, shared.pages[tile] * kKeys, arrivals);
}

__device__ __forceinline__ void sum_values(const DecodeParams& p, const TensorMap& map,
                                           const Split& split, const Shared& shared) {
    const int thread = threadIdx.x % kWarpgroup, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int half = threadIdx.x / kWarpgroup - 1;
    const int upper = thread / 32 * 16 + g;

    const bool loads = threadIdx.x == kWarpgroup;

    float out[kMlaLatent / 4] = {};
    for (int tile = 0; tile < split.num_tiles; ++tile) {
        named_barrier(kProbable + tile % 2, kThreads);
        if (tile == 0 && loads && kLatentStages - 1 < split.num_tiles)  // where queries were
            load_latents(map, shared, kLatentStages - 1);
        shared.wait_for_latent(tile);
        std::byte* const panels = shared.latent(tile) + half * (kLatentBytes / 2);
        const int keys_left = split.num_keys - tile * kKeys;
        if (keys_left < kKeys) clear_keys(panels, keys_left, thread, half);

        const float* const correction = shared.correction(tile);
        const float a = correction[upper], b = correction[upper + 8];
        if (tile > 0 && __any_sync(~0u, a != 1 || b != 1)) {
#pragma unroll
            for (int j = 0; j < kMlaLatent / 16; ++j) {
                out[4 * j] *= a;
                out[4 * j + 1] *= a;
                out[4 * j + 2] *= b;
                out[4 * j + 3] *= b;
            }
        }
        const SharedTile weights = tile_by_rows(shared.rope(tile));
        const SharedTile values = tile_by_columns(panels, kPanelBytes);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kValueSteps; ++k) {
            if (k == kEarlySteps && tile + 1 < split.num_tiles) named_barrier(kScored, kThreads);
            wgmma_bf16<kMlaLatent / 2, true>(out, weights.plus(k * 32), values.plus(k * 2048));
        }
        wgmma_commit();
        wgmma_wait<0>();
        named_barrier(kFree, 2 * kWarpgroup);
        if (loads) {
            if (tile + kRopeStages < split.num_tiles) load_rope(map, shared, tile + kRopeStages);
            if (tile + kLatentStages < split.num_tiles)
                load_latents(map, shared, tile + kLatentStages);
        }
    }

    named_barrier(kSummed, kThreads);
    float* const to = (split.whole() ? p.out + split.row.batch_row * p.out_stride
                                     : p.partial_out + split.slot() * p.heads * kMlaLatent) +
                      half * (kMlaLatent / 2) + 2 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int head = upper + 8 * i;
        if (split.first_head + head >= p.heads) continue;
        const float factor = split.whole() ? 1 / shared.sums[head] : 1;
        float* const columns = to + static_cast<int64_t>(split.first_head + head) * kMlaLatent;
#pragma unroll
        for (int j = 0; j < kMlaLatent / 16; ++j)
            *reinterpret_cast<float2*>(columns + 8 * j) =
                make_float2(out[4 * j + 2 * i] * factor, out[4 * j + 2 * i + 1] * factor);
    }
}

#endif

__global__ __launch_bounds__(kThreads,
                             1) void attend_split_wgmma(DecodeParams p,
                                                        const __grid_constant__ TensorMap map) {
#ifdef FERRY_WGMMA
    Split split{.row = p.rows[blockIdx.z],
                .first_head = static_cast<int>(blockIdx.x) * kHeads,
                .first_key = 0,
                .num_keys = 0,
                .num_tiles = 0,
                .index = static_cast<int>(blockIdx.y)};
    if (split.index >= split.row.num_splits) {
        if (split.row.num_splits == 0 && split.index == 0)
            store_zeros(p, split.row, split.first_head, min(split.first_head + kHeads, p.heads));
        return;
    }
    split.first_key = split.index * split.row.split_keys;
    split.num_keys = min(split.row.num_keys - split.first_key, split.row.split_keys);
    split.num_tiles = (split.num_keys + kKeys - 1) / kKeys;

    FERRY_DYNAMIC_SHARED(memory);
    const Shared shared(memory);
    if (threadIdx.x == kWarpgroup)
        for (int i = 0; i < kLatentStages + kRopeStages; ++i) init_arrivals(&shared.arrivals[i], 1);
    for (int i = threadIdx.x; i < split.num_tiles; i += kThreads)
        shared.pages[i] = p.pages[split.row.first_page + split.first_key / kKeys + i];
    __syncthreads();
    if (threadIdx.x == kWarpgroup) {
        for (int tile = 0; tile < min(kLatentStages - 1, split.num_tiles); ++tile)
            load_latents(map, shared, tile);
        for (int tile = 0; tile < min(kRopeStages, split.num_tiles); ++tile)
            load_rope(map, shared, tile);
    }
    load_queries(p, split, shared);
    fence_async_proxy();
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
        take_registers<184>();
        score(p, split, shared);
    } else {
        leave_registers<160>();
        sum_values(p, map, split, shared);
    }
#endif
}

// Boxes of it are panels of pages.
TensorMap page_map(const DecodeParams& p) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found{};
        check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &found),
                   "ask the driver for tensor maps");
        return reinterpret_cast<Encode>(function);
    }();
    TensorMap map{};
    const cuuint64_t sizes[] = {kWidth, static_cast<cuuint64_t>(p.num_pages) * kKeys};
    const cuuint64_t strides[] = {kWidth * 2};
    const cuuint32_t box[] = {kPanelColumns, kKeys}, steps[] = {1, 1};
    const CUresult result =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(p.cache), sizes,
               strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    FERRY_CHECK(result == CUDA_SUCCESS, "tensor map of {} pages: {}", p.num_pages,
                static_cast<int>(result));
    return map;
}

}  // namespace

void launch_attend_wgmma(const DecodeParams& params, const DecodeGrid& grid, CUstream_st* stream) {
    launch(attend_split_wgmma,
           {.grid = {static_cast<unsigned>(grid.head_blocks),
                     static_cast<unsigned>(grid.num_splits), static_cast<unsigned>(grid.num_rows)},
            .block = {kThreads},
            .shared_bytes = static_cast<size_t>(grid.shared_bytes)},
           stream, params, page_map(params));
}

}  // namespace ferry
