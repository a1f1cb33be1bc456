// Choosing experts: one warp per row does it all. Scores, sums and choices are those of the CPU bit
// for bit (layers/cpu/gate.cpp gives the order of operations).
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/fast_exp.h"
#include "layers/cuda/geometry.h"

namespace ferry {
namespace {

__device__ __forceinline__ float never() {
    return __uint_as_float(0xff800000u);
}

// A row's shared memory.
struct GateRow {
    float* scores;        // [experts]
    float* choice;        // [experts]
    float* group_scores;  // [groups]
};

struct GateCall {
    const float* scores;
    const float* bias;
    int32_t* experts;
    float* weights;
    int64_t rows, scores_stride, experts_stride, weights_stride;
    int num_experts, topk, num_groups, num_kept_groups;
    float scaling_factor;
    bool sigmoid, normalise;
};

__device__ __forceinline__ float max_of_warp(float value) {
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// Lane i < 16 has the i-th of 16 interleaved partial sums; then by halves, the result in all lanes.
__device__ __forceinline__ float sum_by_halves(float partial) {
#pragma unroll
    for (int width = 8; width >= 1; width /= 2)
        partial += __shfl_down_sync(0xffffffffu, partial, width);
    return __shfl_sync(0xffffffffu, partial, 0);
}

__device__ void score_row(const GateCall& call, const float* x, const GateRow& row, int lane) {
    if (call.sigmoid) {
        for (int i = lane; i < call.num_experts; i += 32)
            row.scores[i] = 1.0f / (1.0f + fast_exp(-x[i]));
    } else {
        float maximum = never();
        for (int i = lane; i < call.num_experts; i += 32) maximum = fmaxf(maximum, x[i]);
        maximum = max_of_warp(maximum);
        for (int i = lane; i < call.num_experts; i += 32) row.scores[i] = fast_exp(x[i] - maximum);
        __syncwarp();
        float partial = 0;
        if (lane < 16)
            for (int i = lane; i < call.num_experts; i += 16) partial += row.scores[i];
        const float sum = sum_by_halves(partial);
        __syncwarp();  // all have read the scores
        for (int i = lane; i < call.num_experts; i += 32) row.scores[i] = row.scores[i] / sum;
    }
    for (int i = lane; i < call.num_experts; i += 32) {
        const float choice = call.bias != nullptr ? row.scores[i] + call.bias[i] : row.scores[i];
        row.choice[i] = choice == choice ? choice : never();
    }
    __syncwarp();
}

// A group counts by its highest choice, with a bias by the sum of its two highest. One lane each.
__device__ void mask_groups(const GateCall& call, const GateRow& row, int lane) {
    const int size = call.num_experts / call.num_groups;
    for (int g = lane; g < call.num_groups; g += 32) {
        float first = never(), second = never();
        for (int i = g * size; i < (g + 1) * size; ++i) {
            second = fmaxf(second, fminf(first, row.choice[i]));
            first = fmaxf(first, row.choice[i]);
        }
        row.group_scores[g] = call.bias != nullptr && size > 1 ? first + second : first;
    }
    __syncwarp();
    for (int g = lane; g < call.num_groups; g += 32) {
        int better = 0;
        for (int other = 0; other < call.num_groups; ++other)
            better += row.group_scores[other] > row.group_scores[g] ||
                      (row.group_scores[other] == row.group_scores[g] && other < g);
        if (better >= call.num_kept_groups)
            for (int i = g * size; i < (g + 1) * size; ++i) row.choice[i] = never();
    }
    __syncwarp();
}

// The lowest index of the highest choice, in all lanes; -1: all that is left is to be chosen never.
__device__ int best_expert(const GateCall& call, const GateRow& row, int lane) {
    float best = never();
    int place = 0x7fffffff;
    for (int i = lane; i < call.num_experts; i += 32)
        if (place == 0x7fffffff || row.choice[i] > best) {
            best = row.choice[i];
            place = i;
        }
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, distance);
        const int other_place = __shfl_xor_sync(0xffffffffu, place, distance);
        if (other > best || (other == best && other_place < place)) {
            best = other;
            place = other_place;
        }
    }
    return best == never() ? -1 : place;
}

// Of a token whose scores are no numbers, too, the experts are distinct: the lowest ones left.
__device__ int first_not_among(const int32_t* experts, int num) {
    int first = 0;
    for (int k = 0; k < num; ++k)
        if (experts[k] == first) {
            ++first;
            k = -1;  // from the beginning
        }
    return first;
}

__global__ void gate_kernel(GateCall call) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    FERRY_DYNAMIC_SHARED(shared);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
    if (index >= call.rows) return;  // a whole warp
    float* memory =
        reinterpret_cast<float*>(shared) + warp * (2 * call.num_experts + call.num_groups);
    const GateRow row{memory, memory + call.num_experts, memory + 2 * call.num_experts};
    score_row(call, call.scores + index * call.scores_stride, row, lane);
    if (call.num_groups > 1) mask_groups(call, row, lane);
    float sum = 0;
    for (int k = 0; k < call.topk; ++k) {
        int best = best_expert(call, row, lane);
        if (best < 0) best = first_not_among(call.experts + index * call.experts_stride, k);
        sum += row.scores[best];
        __syncwarp();  // all have read the choices
        if (lane == 0) {
            call.experts[index * call.experts_stride + k] = best;
            row.choice[best] = never();
        }
        __syncwarp();
    }
    for (int k = lane; k < call.topk; k += 32) {
        float weight = row.scores[call.experts[index * call.experts_stride + k]];
        if (call.normalise) weight = weight / (sum + 1e-20f);
        call.weights[index * call.weights_stride + k] = weight * call.scaling_factor;
    }
}

}  // namespace

void CudaKernels::gate(const Tensor& scores, const Tensor* bias, const GateParams& p,
                       const Tensor& experts, const Tensor& weights) {
    const int64_t rows = scores.rows(), num_experts = scores.dim(1);
    check_shape(scores, "scores", DType::f32, {rows, num_experts});
    check_shape(experts, "experts", DType::i32, {rows, p.topk});
    check_shape(weights, "weights", DType::f32, {rows, p.topk});
    if (bias) check_shape(*bias, "bias", DType::f32, {num_experts});
    FERRY_CHECK(p.topk >= 1 && p.topk <= num_experts && num_experts % p.num_groups == 0,
                "top {} of {} experts in {} groups", p.topk, num_experts, p.num_groups);
    if (rows == 0) return;
    launch_early(gate_kernel, gate_shape(rows, num_experts, p.num_groups), stream(),
                 GateCall{.scores = scores.as<float>(),
                          .bias = bias ? bias->as<float>() : nullptr,
                          .experts = experts.as<int32_t>(),
                          .weights = weights.as<float>(),
                          .rows = rows,
                          .scores_stride = scores.row_stride(),
                          .experts_stride = experts.row_stride(),
                          .weights_stride = weights.row_stride(),
                          .num_experts = static_cast<int>(num_experts),
                          .topk = static_cast<int>(p.topk),
                          .num_groups = static_cast<int>(p.num_groups),
                          .num_kept_groups = static_cast<int>(p.num_kept_groups),
                          .scaling_factor = p.scaling_factor,
                          .sigmoid = p.score_func == ScoreFunc::sigmoid,
                          .normalise = p.normalise});
}

}  // namespace ferry
