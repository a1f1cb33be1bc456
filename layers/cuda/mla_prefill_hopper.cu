// Causal attention of one sequence's prompt rows over expanded keys and values on Hopper's tensor
// cores (wgmma.h), as FlashAttention-3 (https://arxiv.org/abs/2407.08608) orders it. A block takes
// one head and 128 rows: two warpgroups of 64 rows each, and four warps that keep two stages of
// keys and of values full. A warpgroup starts the scores of the next tile of keys before it turns
// those of this one into probabilities, and the two take turns in starting products, so that the
// tensor cores work while exponentials are taken.
//
// As in mla_prefill.cu queries, keys, values and probabilities are rounded to bf16, sums are f32,
// and tiles of keys lie at absolute positions and are summed in ascending order: a row's result
// depends neither on the tile of rows it falls into nor on chunking.
#include <algorithm>
#include <cfloat>

#include "base/cuda_launch.h"
#include "layers/cuda/fast_exp.h"
#include "layers/cuda/mla_launch.h"
#include "layers/cuda/tiles.h"
#include "layers/cuda/wgmma.h"

namespace ferry {
namespace {

constexpr int kNope = kMlaNope, kRope = kMlaRope, kValue = kMlaValue, kDepth = kNope + kRope;
constexpr int kKeys = 128;  // of a tile
constexpr int kGroupThreads = 128, kGroupRows = 64, kGroups = 2, kStages = 2;
constexpr int kQueries = kGroups * kGroupRows;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;  // the last warpgroup loads
constexpr int kPanelColumns = 64, kPanelPitch = 2 * kPanelColumns;
constexpr int kKeyPanels = kDepth / kPanelColumns, kValuePanels = kValue / kPanelColumns;
constexpr int kQueryPanelBytes = kGroupRows * kPanelPitch;
constexpr int kQueryBytes = kKeyPanels * kQueryPanelBytes;  // of a warpgroup

constexpr int kPanelBytes = kKeys * kPanelPitch;
constexpr int kKeyBytes = kKeyPanels * kPanelBytes, kValueBytes = kValuePanels * kPanelBytes;
constexpr int kKeysAt = kGroups * kQueryBytes, kValuesAt = kKeysAt + kStages * kKeyBytes;
constexpr int kSharedBytes = kValuesAt + kStages * kValueBytes;

#ifdef FERRY_WGMMA

constexpr int kSteps = kPanelColumns / 16;  // of a product in a panel
// Registers of a thread that computes and of one that loads.
constexpr int kComputeRegisters = 232, kLoadRegisters = 40;

// Registers of each thread of the calling warpgroup from now on: fewer or more than the kernel was
// compiled for.
template <int kCount>
__device__ __forceinline__ void release_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Named barriers. A stage that has become full is told each warpgroup on its own, so that neither
// waits for the other.
enum class Operand { keys, values };
__device__ int full_barrier(Operand operand, int stage, int group) {
    return 1 + (operand == Operand::values ? 4 : 0) + stage * kGroups + group;
}
__device__ int empty_barrier(Operand operand, int stage) {
    return 9 + (operand == Operand::values ? 2 : 0) + stage;
}
__device__ int turn_barrier(int group) {
    return 13 + group;
}
constexpr int kFullThreads = kGroupThreads + 32, kEmptyThreads = kGroups * kGroupThreads + 32;
constexpr int kTurnThreads = kGroups * kGroupThreads;

__device__ int num_tiles(int keys) {
    return (keys + kKeys - 1) / kKeys;
}

// Up to 128 rows of one head; no tiles: there is no more to do.
struct Block {
    int head = 0, first_row = 0, end_row = 0, end_key = 0, num_tiles = 0;
};
// The `count`-th of this thread block. In pairs of one head, the i-th row tile and the i-th last:
// all pairs are as long, so that thread blocks stay together and keys and values of a few heads in
// L2. Neighbours begin with different ones, since beginnings and ends wait for memory. Of an odd
// number of row tiles the pair's last has no rows.
__device__ Block block_of(const PrefillParams& p, int count) {
    const int row_tiles = (p.num_rows + kQueries - 1) / kQueries;
    const int per_head = p.paired ? (row_tiles + 1) / 2 : row_tiles;
    const int unit = blockIdx.x + (p.paired ? count / 2 : count) * gridDim.x, i = unit % per_head;
    Block block;
    if (unit >= per_head * p.heads) return block;
    const bool from_first = p.paired && (unit + count) % 2 != 0;
    const int row_tile = from_first ? i : (p.paired ? 2 * per_head : row_tiles) - 1 - i;
    block.head = unit / per_head;
    block.first_row = row_tile * kQueries;
    block.end_row = row_tile < row_tiles ? min(block.first_row + kQueries, p.num_rows) : 0;
    block.end_key = row_tile < row_tiles ? p.first_position + block.end_row : 1;
    block.num_tiles = num_tiles(block.end_key);
    return block;
}

// ---- Loading: a warp has one stage of keys or of values

// `kChunks` 16-byte chunks of kKeys rows `stride` elements apart, to panels; zeros for rows from
// num_rows on. A warp is alone with this, so the loop is unrolled into little more than copies.
template <int kChunks>
__device__ __forceinline__ void copy_rows(std::byte* panels, const uint16_t* from, int64_t stride,
                                          int num_rows) {
    constexpr int kRowsAtOnce = 32 / kChunks, kPlaces = 8 / kRowsAtOnce;
    const int lane = threadIdx.x % 32, chunk = lane % kChunks, first = lane / kChunks;
    std::byte* places[kPlaces];  // of the first 8 rows; those of others are multiples of 1024 on
#pragma unroll
    for (int i = 0; i < kPlaces; ++i)
        places[i] = panels + chunk / 8 * kPanelBytes +
                    tile_offset(first + i * kRowsAtOnce, chunk % 8, kPanelPitch);
    const uint16_t* sources[2];  // in turn: one is moved on while a copy still reads the other
#pragma unroll
    for (int i = 0; i < 2; ++i) sources[i] = from + (first + i * kRowsAtOnce) * stride + chunk * 8;
    const auto copy = [&](int i, bool valid) {
        copy_async(places[i % kPlaces] + i / kPlaces * 8 * kPanelPitch, sources[i % 2], valid);
        sources[i % 2] += 2 * kRowsAtOnce * stride;
    };
    if (num_rows >= kKeys) {
#pragma unroll
        for (int i = 0; i < kKeys / kRowsAtOnce; ++i) copy(i, true);
    } else {
#pragma unroll 4
        for (int i = 0; i < kKeys / kRowsAtOnce; ++i) copy(i, first + i * kRowsAtOnce < num_rows);
    }
}

__device__ void load(std::byte* shared, const PrefillParams& p, const Block& block, int tile,
                     Operand operand, int stage) {
    static_assert(kNope == kValue);
    const bool keys = operand == Operand::keys;
    const int first_key = tile * kKeys, num_keys = block.end_key - first_key;
    std::byte* const to =
        shared + (keys ? kKeysAt + stage * kKeyBytes : kValuesAt + stage * kValueBytes);
    const int64_t column = static_cast<int64_t>(block.head) * (kNope + kValue) + (keys ? 0 : kNope);
    copy_rows<kNope / 8>(to, p.kv + first_key * p.kv_stride + column, p.kv_stride, num_keys);
    if (keys)
        copy_rows<kRope / 8>(to + kNope / kPanelColumns * kPanelBytes,
                             p.rope + first_key * p.rope_stride, p.rope_stride, num_keys);
    commit_copies();
    wait_for_copies<0>();
    fence_async_proxy();
}

__device__ void keep_full(std::byte* shared, const PrefillParams& p) {
    const int warp = threadIdx.x / 32 % 4, stage = warp % kStages;
    const Operand operand = warp < kStages ? Operand::keys : Operand::values;
    int next = stage;  // tile of the block that this stage is for
#pragma unroll 1
    for (int at = 0;; ++at) {
        const Block block = block_of(p, at);
        if (block.num_tiles == 0) break;
#pragma unroll 1
        for (; next < block.num_tiles; next += kStages) {
            named_barrier(empty_barrier(operand, stage), kEmptyThreads);
            load(shared, p, block, next, operand, stage);
            for (int group = 0; group < kGroups; ++group)
                named_barrier_arrive(full_barrier(operand, stage, group), kFullThreads);
        }
        next -= block.num_tiles;
    }
    named_barrier(empty_barrier(operand, stage), kEmptyThreads);  // no arrival is left over
}

// ---- Computing: a warpgroup has 64 rows

// Registers that products write are read below this only.
template <int kCount>
__device__ __forceinline__ void settle([[maybe_unused]] float (&values)[kCount]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
#endif
}

// A thread's part of a warpgroup's queries on their way from f32 in global memory to bf16 in shared
// memory: 4 rows, and of each one chunk of 8 values in every panel. In two halves, so that those of
// the next block are loaded while this one ends.
struct Queries {
    static constexpr int kRows = kGroupRows * 8 / kGroupThreads, kApart = kGroupThreads / 8;
    float4 values[kRows][kKeyPanels][2];

    // Rows of `block` from first_row on, zeros from its end on.
    __device__ __forceinline__ void load(const PrefillParams& p, const Block& block,
                                         int first_row) {
        const int row = first_row + threadIdx.x % kGroupThreads / 8, chunk = threadIdx.x % 8;
        const float* from = p.q + row * p.q_stride + block.head * kDepth + chunk * 8;
#pragma unroll
        for (int i = 0; i < kRows; ++i, from += kApart * p.q_stride)
#pragma unroll
            for (int panel = 0; panel < kKeyPanels; ++panel)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    values[i][panel][j] =
                        row + i * kApart < block.end_row
                            ? reinterpret_cast<const float4*>(from + panel * kPanelColumns)[j]
                            : make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void store(std::byte* panels) const {
        const int row = threadIdx.x % kGroupThreads / 8, chunk = threadIdx.x % 8;
        std::byte* const to = panels + tile_offset(row, chunk, kPanelPitch);
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int panel = 0; panel < kKeyPanels; ++panel) {
                const float4 a = values[i][panel][0], b = values[i][panel][1];
                *reinterpret_cast<uint4*>(to + panel * kQueryPanelBytes +
                                          i * kApart * kPanelPitch) =
                    make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                               pack_bf16(b.z, b.w));
            }
        fence_async_proxy();
    }
};

// scores = queries keys^T
__device__ __forceinline__ void start_scores(float (&scores)[kKeys / 2], const std::byte* queries,
                                             const std::byte* keys) {
#pragma unroll
    for (int panel = 0; panel < kKeyPanels; ++panel) {
        const SharedTile a = tile_by_rows(queries + panel * kQueryPanelBytes);
        const SharedTile b = tile_by_rows(keys + panel * kPanelBytes);
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
            wgmma_bf16<kKeys>(scores, a.plus(32 * step), b.plus(32 * step), panel + step > 0);
    }
    wgmma_commit();
}

// out += probabilities values
__device__ __forceinline__ void start_values(float (&out)[kValue / 2],
                                             const uint32_t (&probabilities)[kKeys / 16][4],
                                             const std::byte* values) {
    const SharedTile b = tile_by_columns(values, kPanelBytes);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
        wgmma_bf16<kValue, true>(out, probabilities[k], b.plus(2048 * k));
    wgmma_commit();
}

// Of the rows g and g + 8 that a thread has part of, in units of log2.
struct Softmax {
    float maximum[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};

    // Scores become exp2(scale * score - maximum); `correction`: what earlier ones are worth.
    // position: of row g. Keys after a row's position take no part.
    __device__ __forceinline__ void update(float (&scores)[kKeys / 2], float (&correction)[2],
                                           int first_key, int position, float scale_log2) {
        constexpr int kCount = kKeys / 2;
        const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
        if (first_key + kKeys - 1 > position - g)  // the same in a warp
#pragma unroll
            for (int i = 0; i < kCount; ++i)
                if (first_key + i / 4 * 8 + 2 * t + i % 2 > position + i % 4 / 2 * 8)
                    scores[i] = -INFINITY;
        float highest[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
        for (int i = 0; i < kCount; ++i) highest[i % 4 / 2] = fmaxf(highest[i % 4 / 2], scores[i]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float now = fmaxf(maximum[half], quad_max(highest[half]) * scale_log2);
            correction[half] = fast_exp2(maximum[half] - now);
            maximum[half] = now;
            sum[half] *= correction[half];
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            scores[i] = fast_exp2(fmaf(scores[i], scale_log2, -maximum[i % 4 / 2]));
            sum[i % 4 / 2] += scores[i];
        }
    }
};

// Scores lie as the A fragments of the next product want them.
__device__ __forceinline__ void pack(uint32_t (&probabilities)[kKeys / 16][4],
                                     const float (&scores)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i)
        probabilities[i / 4][i % 4] = pack_bf16(scores[2 * i], scores[2 * i + 1]);
}

__device__ __forceinline__ void rescale(float (&out)[kValue / 2], const float (&correction)[2]) {
#pragma unroll
    for (int i = 0; i < kValue / 2; ++i) out[i] *= correction[i % 4 / 2];
}

__device__ void store_result(const float (&out)[kValue / 2], const float (&sum)[2],
                             const PrefillParams& p, const Block& block, int row_of_g) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = 1 / quad_sum(sum[half]);
        const int64_t row = row_of_g + 8 * half;
        if (row >= block.end_row) continue;
        float* const to =
            p.out + row * p.out_stride + static_cast<int64_t>(block.head) * kValue + 2 * t;
#pragma unroll
        for (int j = 0; j < kValue / 8; ++j)
            *reinterpret_cast<float2*>(to + j * 8) =
                make_float2(out[4 * j + 2 * half] * factor, out[4 * j + 2 * half + 1] * factor);
    }
}

// The stages as a warpgroup goes through them.
struct Stages {
    std::byte* shared;
    int group;

    __device__ const std::byte* wait_for_keys(int tile) const {
        named_barrier(full_barrier(Operand::keys, tile % kStages, group), kFullThreads);
        return shared + kKeysAt + tile % kStages * kKeyBytes;
    }
    __device__ const std::byte* wait_for_values(int tile) const {
        named_barrier(full_barrier(Operand::values, tile % kStages, group), kFullThreads);
        return shared + kValuesAt + tile % kStages * kValueBytes;
    }
    __device__ void give_back(Operand operand, int tile) const {
        named_barrier_arrive(empty_barrier(operand, tile % kStages), kEmptyThreads);
    }
    __device__ void take_turn() const { named_barrier(turn_barrier(group), kTurnThreads); }
    __device__ void give_turn() const {
        named_barrier_arrive(turn_barrier(1 - group), kTurnThreads);
    }
};

__device__ __forceinline__ void compute(std::byte* shared, const PrefillParams& p, int group) {
    const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4;
    const Stages stages{shared, group};
    std::byte* const queries = shared + group * kQueryBytes;
    for (int stage = 0; stage < kStages; ++stage) {
        stages.give_back(Operand::keys, stage);
        stages.give_back(Operand::values, stage);
    }
    if (group == 1) stages.give_turn();

    int count = 0;  // tiles of the blocks so far
    Block block = block_of(p, 0);
    {
        Queries first;
        first.load(p, block, block.first_row + group * kGroupRows);
        first.store(queries);
    }
    for (int at = 1; block.num_tiles > 0; ++at) {
        const int first_row = block.first_row + group * kGroupRows;
        const int row_of_g = first_row + warp * 16 + g, position = p.first_position + row_of_g;
        // Tiles that some row of this warpgroup sees; the others only pass by.
        const int end_row = min(first_row + kGroupRows, block.end_row);
        const int tiles = first_row < end_row ? num_tiles(p.first_position + end_row) : 1;

        float out[kValue / 2] = {}, scores[kKeys / 2], correction[2];
        uint32_t probabilities[kKeys / 16][4];
        Softmax softmax;
        // Of the product with a tile's values, if there was one. It is waited for in another pass
        // of the loop than it was started in: in one piece of straight code the compiler would
        // wait before it takes the exponentials.
        const auto finish_values = [&](int tile) {
            wgmma_wait<0>();
            settle(out);
            if (tile >= 0) stages.give_back(Operand::values, count + tile);
            rescale(out, correction);
            pack(probabilities, scores);
            settle(out);
        };
        {
            const std::byte* const keys = stages.wait_for_keys(count);
            stages.take_turn();
            wgmma_fence();
            start_scores(scores, queries, keys);
            stages.give_turn();
            wgmma_wait<0>();
            settle(scores);
            stages.give_back(Operand::keys, count);
            softmax.update(scores, correction, 0, position, p.scale_log2);
        }
        for (int tile = 1; tile < tiles; ++tile) {
            finish_values(tile - 2);
            const std::byte* const keys = stages.wait_for_keys(count + tile);
            stages.take_turn();
            wgmma_fence();
            start_scores(scores, queries, keys);
            start_values(out, probabilities, stages.wait_for_values(count + tile - 1));
            stages.give_turn();
            wgmma_wait<1>();
            settle(scores);
            stages.give_back(Operand::keys, count + tile);
            softmax.update(scores, correction, tile * kKeys, position, p.scale_log2);
        }
        finish_values(tiles - 2);
        wgmma_fence();
        start_values(out, probabilities, stages.wait_for_values(count + tiles - 1));
        // The queries of the next block are on their way while this one ends.
        Queries next_queries;
        const Block next_block = block_of(p, at);
        next_queries.load(p, next_block, next_block.first_row + group * kGroupRows);
        wgmma_wait<0>();
        settle(out);
        stages.give_back(Operand::values, count + tiles - 1);
        for (int tile = tiles; tile < block.num_tiles; ++tile) {
            stages.wait_for_keys(count + tile);
            stages.give_back(Operand::keys, count + tile);
            stages.take_turn();
            stages.give_turn();
            stages.wait_for_values(count + tile);
            stages.give_back(Operand::values, count + tile);
        }
        store_result(out, softmax.sum, p, block, row_of_g);
        next_queries.store(queries);
        count += block.num_tiles;
        block = next_block;
    }
    if (group == 0) stages.take_turn();  // no arrival is left over
}

#endif

__global__ __launch_bounds__(kThreads, 1) void prefill_hopper(PrefillParams p) {
#ifdef FERRY_WGMMA
    FERRY_DYNAMIC_SHARED(shared);
    // The shuffle tells the compiler that a warp's threads have it in common.
    const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
    if (group == kGroups) {
        release_registers<kLoadRegisters>();
        keep_full(shared, p);
    } else {
        take_registers<kComputeRegisters>();
        compute(shared, p, group);
    }
#endif
}

}  // namespace

void launch_prefill_hopper(PrefillParams params, int multiprocessors, CUstream_st* stream) {
    const int pieces = (params.num_rows + kQueries - 1) / kQueries * params.heads;
    params.paired = pieces > multiprocessors;
    const int blocks = std::min(pieces, multiprocessors);
    launch(prefill_hopper,
           {.grid = {static_cast<unsigned>(blocks)},
            .block = {kThreads},
            .shared_bytes = kSharedBytes},
           stream, params);
}

}  // namespace ferry
