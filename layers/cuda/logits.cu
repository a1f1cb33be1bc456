// One block per row: its largest value and where it first is, then the sum of exponentials. The row
// comes from the second-level cache the second time.
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/reduce.h"

namespace ferry {
namespace {

constexpr int kThreads = 512;

struct Best {
    float value;
    int32_t place;
};

// The higher value, of equal ones the lower place. NaN never wins.
__device__ __forceinline__ Best better_of(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.place < a.place) ? b : a;
}
__device__ __forceinline__ Best best_of_warp(Best best) {
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2) {
        const Best other{__shfl_xor_sync(0xffffffffu, best.value, distance),
                         __shfl_xor_sync(0xffffffffu, best.place, distance)};
        best = better_of(best, other);
    }
    return best;
}

__global__ void __launch_bounds__(kThreads)
    log_sum_exp_kernel(const float* logits, int64_t stride, int32_t vocab, float* lse,
                       int32_t* argmax) {
    constexpr int kWarps = kThreads / static_cast<int>(kWarpThreads);
    __shared__ float values[kWarps];
    __shared__ int32_t places[kWarps];
    __shared__ float sums[kWarpThreads];
    const float* x = logits + blockIdx.x * stride;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const float lowest = __uint_as_float(0xff800000u);

    Best best{lowest, 0x7fffffff};
    for (int32_t i = thread; i < vocab; i += kThreads) best = better_of(best, {x[i], i});
    best = best_of_warp(best);
    if (lane == 0) {
        values[warp] = best.value;
        places[warp] = best.place;
    }
    __syncthreads();
    best =
        best_of_warp(lane < kWarps ? Best{values[lane], places[lane]} : Best{lowest, 0x7fffffff});

    float sum = 0;
    for (int32_t i = thread; i < vocab; i += kThreads) sum += expf(x[i] - best.value);
    sum = block_sum(sum, sums);
    if (thread != 0) return;
    argmax[blockIdx.x] = best.place == 0x7fffffff ? 0 : best.place;  // all NaN: 0
    lse[blockIdx.x] = best.value + logf(sum);
}

}  // namespace

void CudaKernels::log_sum_exp(const Tensor& logits, const Tensor& lse, std::span<int32_t> argmax) {
    const int64_t rows = logits.rows(), vocab = logits.dim(1);
    check_shape(logits, "logits", DType::f32, {rows, vocab});
    check_shape(lse, "lse", DType::f32, {rows});
    FERRY_CHECK(vocab > 0 && static_cast<int64_t>(argmax.size()) == rows,
                "{} arg-maxes of logits {}", argmax.size(), logits.describe());
    if (rows == 0) return;
    auto* places = static_cast<int32_t*>(scratch(Scratch::argmax, argmax.size_bytes()));
    launch(log_sum_exp_kernel,
           LaunchShape{.grid = {static_cast<unsigned>(rows)}, .block = {kThreads}}, stream(),
           logits.as<float>(), logits.row_stride(), static_cast<int32_t>(vocab), lse.as<float>(),
           places);
    device_.copy_to_host(argmax.data(), places, argmax.size_bytes());
}

}  // namespace ferry
