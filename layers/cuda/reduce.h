// Sums and maxima over a warp and a block, always in the same order.
#pragma once
#include "base/cuda_api.h"
#include "layers/cuda/geometry.h"

namespace ferry {

// All lanes get the result.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// Blocks of whole warps, up to 32. `scratch`: 32 floats of shared memory, free again after the next
// barrier. All threads get the result.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    const unsigned lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / kWarpThreads ? scratch[lane] : 0.0f);
}
__device__ __forceinline__ float block_max(float value, float* scratch) {
    const unsigned lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
    value = warp_max(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_max(lane < blockDim.x / kWarpThreads ? scratch[lane] : -INFINITY);
}

}  // namespace ferry
