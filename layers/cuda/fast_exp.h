// The exponential of the CPU kernels (layers/cpu/vector-inl.h), bit for bit.
#pragma once
#include "base/cuda_api.h"

namespace ferry {

__device__ __forceinline__ float fast_exp(float x) {
    constexpr float kShift = 0x1.8p23f;
    const float t = fmaf(x, 0x1.715476p+0f, kShift);
    const float n = t - kShift;
    float r = fmaf(n, -0x1.62e4p-1f, x);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    const float y = fmaf(p, r * r, r) + 1.0f;
    const float scaled = __uint_as_float(__float_as_uint(y) + (__float_as_uint(t) << 23));
    const float bounded = x > 88.72283f ? __uint_as_float(0x7f800000u) : scaled;
    return x < -87.33f ? 0.0f : bounded;
}

// 2^x within 2^-22 of itself; 0 where it would be subnormal.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ float fast_silu(float x) {
    return x / (1.0f + fast_exp(-x));
}

}  // namespace ferry
