// Causal attention of one sequence's prompt rows over expanded keys and values, as FlashAttention-2
// orders it: a block takes one head and 128 rows (a warp 16 of them, whose queries stay in
// registers), and goes through blocks of 64 keys at absolute positions with a running maximum.
// A row's result does not depend on the tile it falls into, so not on chunking either. Queries,
// keys, values and probabilities are rounded to bf16, sums are f32. GPUs of compute capability 9.0
// have mla_prefill_hopper.cu.
//
// Heads of other sizes than 128 + 64 and 128 go through prefill_plain: f32 throughout.
#include <algorithm>
#include <cfloat>

#include "base/cuda_launch.h"
#include "layers/cuda/mla_launch.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/tiles.h"

namespace ferry {
namespace {

constexpr int kNope = kMlaNope, kRope = kMlaRope, kValue = kMlaValue, kDepth = kNope + kRope;
constexpr int kKeys = kTileKeys;
constexpr int kThreads = kPrefillThreads, kQueries = kPrefillQueries;
constexpr int kKeyPitch = kDepth * 2, kValuePitch = kValue * 2;
constexpr int kKeyBytes = kKeys * kKeyPitch, kStageBytes = kKeyBytes + kKeys * kValuePitch;
constexpr int kKeySteps = kDepth / 16;

__device__ void load_stage(std::byte* stage, const PrefillParams& p, int head, int first_key,
                           int end_key) {
    constexpr int kKeyChunks = kDepth / 8, kValueChunks = kValue / 8;
    const uint16_t* const kv = p.kv + head * (kNope + kValue);
#pragma unroll
    for (int i = threadIdx.x; i < kKeys * kKeyChunks; i += kThreads) {
        const int key = i / kKeyChunks, chunk = i % kKeyChunks;
        const int64_t position = first_key + key;
        const uint16_t* const from = chunk < kNope / 8
                                         ? kv + position * p.kv_stride + chunk * 8
                                         : p.rope + position * p.rope_stride + chunk * 8 - kNope;
        copy_async(stage + tile_offset(key, chunk, kKeyPitch), from, position < end_key);
    }
#pragma unroll
    for (int i = threadIdx.x; i < kKeys * kValueChunks; i += kThreads) {
        const int key = i / kValueChunks, chunk = i % kValueChunks;
        const int64_t position = first_key + key;
        copy_async(stage + kKeyBytes + tile_offset(key, chunk, kValuePitch),
                   kv + position * p.kv_stride + kNope + chunk * 8, position < end_key);
    }
    commit_copies();
}

__device__ inline uint32_t load_pair(const float* row, int column) {
    if (row == nullptr) return 0;
    const float2 pair = *reinterpret_cast<const float2*>(row + column);
    return pack_bf16(pair.x, pair.y);
}

__global__ __launch_bounds__(kThreads, 1) void prefill(PrefillParams p) {
    FERRY_DYNAMIC_SHARED(stages);
    const int head = blockIdx.x;
    // The longest blocks first: the last rows see the most keys.
    const int first_row = (gridDim.y - 1 - blockIdx.y) * kQueries;
    const int end_row = min(first_row + kQueries, p.num_rows);
    const int end_key = p.first_position + end_row;
    const int num_tiles = (end_key + kKeys - 1) / kKeys;
    load_stage(stages, p, head, 0, end_key);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp_row = first_row + warp * 16;
    uint32_t query[kKeySteps][4];
    {
        const int64_t upper = warp_row + g, lower = upper + 8;
        const float* const a = upper < end_row ? p.q + upper * p.q_stride + head * kDepth : nullptr;
        const float* const b = lower < end_row ? p.q + lower * p.q_stride + head * kDepth : nullptr;
#pragma unroll
        for (int k = 0; k < kKeySteps; ++k) {
            query[k][0] = load_pair(a, k * 16 + 2 * t);
            query[k][1] = load_pair(b, k * 16 + 2 * t);
            query[k][2] = load_pair(a, k * 16 + 2 * t + 8);
            query[k][3] = load_pair(b, k * 16 + 2 * t + 8);
        }
    }
    const int position = p.first_position + warp_row;  // of the warp's first row
    float out[kValue / 8][4] = {};
    float maximum[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};

    for (int tile = 0; tile < num_tiles; ++tile) {
        wait_for_copies<0>();
        __syncthreads();
        if (tile + 1 < num_tiles)
            load_stage(stages + (tile + 1) % 2 * kStageBytes, p, head, (tile + 1) * kKeys, end_key);
        const int first_key = tile * kKeys;
        if (first_key > position + 15) continue;  // no row of this warp sees these keys
        const std::byte* const keys = stages + tile % 2 * kStageBytes;
        const std::byte* const values = keys + kKeyBytes;

        float scores[kKeys / 8][4] = {};
#pragma unroll
        for (int k = 0; k < kKeySteps; k += 2)
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
                uint32_t b[4];
                load_b(b, keys, n * 8, k * 2, kKeyPitch, lane);
                multiply_add(scores[n], query[k], b[0], b[1]);
                multiply_add(scores[n], query[k + 1], b[2], b[3]);
            }

        const bool masked = first_key + kKeys - 1 > position;
        float highest[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + n * 8 + 2 * t + i % 2;
                scores[n][i] *= p.scale_log2;
                if (masked && key > position + g + i / 2 * 8) scores[n][i] = -INFINITY;
                highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float new_maximum = fmaxf(maximum[half], quad_max(highest[half]));
            const float correction = exp2f(maximum[half] - new_maximum);
            maximum[half] = new_maximum;
            sum[half] *= correction;
#pragma unroll
            for (int n = 0; n < kValue / 8; ++n) {
                out[n][2 * half] *= correction;
                out[n][2 * half + 1] *= correction;
            }
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2f(scores[n][i] - new_maximum);
                    sum[half] += scores[n][i];
                }
        }
        // Scores lie as the A fragments of the next product want them.
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
            const float* const s0 = scores[2 * k];
            const float* const s1 = scores[2 * k + 1];
            const uint32_t a[4] = {pack_bf16(s0[0], s0[1]), pack_bf16(s0[2], s0[3]),
                                   pack_bf16(s1[0], s1[1]), pack_bf16(s1[2], s1[3])};
#pragma unroll
            for (int n = 0; n < kValue / 8; n += 2) {
                uint32_t b[4];
                load_b_transposed(b, values, k * 16, n, kValuePitch, lane);
                multiply_add(out[n], a, b[0], b[1]);
                multiply_add(out[n + 1], a, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = 1 / quad_sum(sum[half]);
        const int64_t row = warp_row + g + 8 * half;
        if (row >= end_row) continue;
        float* const to = p.out + row * p.out_stride + head * kValue + 2 * t;
#pragma unroll
        for (int n = 0; n < kValue / 8; ++n)
            *reinterpret_cast<float2*>(to + n * 8) =
                make_float2(out[n][2 * half] * factor, out[n][2 * half + 1] * factor);
    }
}

// ---- Any sizes: a block takes one head of one row, in f32
__global__ __launch_bounds__(kPlainThreads) void prefill_plain(PlainPrefillParams p) {
    const int head = blockIdx.x, depth = p.nope_dim + p.rope_dim;
    const int64_t row = blockIdx.y;
    FERRY_DYNAMIC_SHARED(memory);
    float* const query = reinterpret_cast<float*>(memory);  // [depth]
    float* const out = query + depth;                       // [v_dim]
    float* const scores = out + p.v_dim;                    // [kKeys]
    for (int i = threadIdx.x; i < depth; i += kPlainThreads)
        query[i] = p.q[row * p.q_stride + static_cast<int64_t>(head) * depth + i];
    for (int i = threadIdx.x; i < p.v_dim; i += kPlainThreads) out[i] = 0;

    const int64_t end_key = p.first_position + row + 1;
    const float* const kv = p.kv + static_cast<int64_t>(head) * (p.nope_dim + p.v_dim);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float maximum = -FLT_MAX, sum = 0;
    for (int64_t begin = 0; begin < end_key; begin += kKeys) {
        const int num_keys = static_cast<int>(min(static_cast<int64_t>(kKeys), end_key - begin));
        __syncthreads();
        for (int key = warp; key < num_keys; key += kPlainThreads / 32) {
            const float* const nope = kv + (begin + key) * p.kv_stride;
            const float* const rope = p.rope + (begin + key) * p.rope_stride - p.nope_dim;
            float dot = 0;
            for (int i = lane; i < depth; i += 32)
                dot = fmaf(query[i], i < p.nope_dim ? nope[i] : rope[i], dot);
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
        for (int i = threadIdx.x; i < p.v_dim; i += kPlainThreads) {
            float value = out[i] * correction;
            for (int key = 0; key < num_keys; ++key)
                value = fmaf(exp2f(scores[key] - maximum),
                             kv[(begin + key) * p.kv_stride + p.nope_dim + i], value);
            out[i] = value;
        }
    }
    for (int i = threadIdx.x; i < p.v_dim; i += kPlainThreads)
        p.out[row * p.out_stride + static_cast<int64_t>(head) * p.v_dim + i] = out[i] / sum;
}

}  // namespace

void launch_prefill(const PrefillParams& params, CUstream_st* stream) {
    const int tiles = (params.num_rows + kQueries - 1) / kQueries;
    launch(prefill,
           {.grid = {static_cast<unsigned>(params.heads), static_cast<unsigned>(tiles)},
            .block = {kThreads},
            .shared_bytes = 2 * kStageBytes},
           stream, params);
}

void launch_prefill_plain(const PlainPrefillParams& params, int heads, CUstream_st* stream) {
    const size_t floats =
        static_cast<size_t>(params.nope_dim + params.rope_dim + params.v_dim + kKeys);
    PlainPrefillParams part = params;
    for (int first = 0; first < params.num_rows; first += static_cast<int>(kMaxGridYZ)) {
        part.q = params.q + first * params.q_stride;
        part.out = params.out + first * params.out_stride;
        part.first_position = params.first_position + first;
        part.num_rows = std::min(static_cast<int>(kMaxGridYZ), params.num_rows - first);
        launch(prefill_plain,
               {.grid = {static_cast<unsigned>(heads), static_cast<unsigned>(part.num_rows)},
                .block = {kPlainThreads},
                .shared_bytes = floats * sizeof(float)},
               stream, part);
    }
}

}  // namespace ferry
