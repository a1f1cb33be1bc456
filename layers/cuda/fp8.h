// e4m3 with one scale per block, as MODEL.md "Quantisation" and the CPU define it.
#pragma once
#include "base/cuda_api.h"
#include "layers/cuda/vector.h"

namespace ferry {

__device__ __forceinline__ uint8_t to_fp8(float value) {
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

// Four values divided by `scale`, the first in the low byte.
__device__ __forceinline__ uint32_t pack_fp8(const float (&values)[4], float scale) {
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(values[0] / scale, values[1] / scale),
                                                  __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(
        make_float2(values[2] / scale, values[3] / scale), __NV_SATFINITE, __NV_E4M3);
    return low | high << 16;
}

__device__ __forceinline__ float fp8_magnitude(const float (&values)[4]) {
    return fmaxf(fmaxf(fabsf(values[0]), fabsf(values[1])),
                 fmaxf(fabsf(values[2]), fabsf(values[3])));
}

// Scale of a block whose largest magnitude is `largest`.
__device__ __forceinline__ float fp8_scale(float largest, bool power_of_two) {
    const float scale = fmaxf(largest, 1e-4f) / 448.0f;
    if (!power_of_two) return scale;
    return __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0xff800000u);
}

// Exact, subnormals included; the NaN codes give 480. Exponents of f32 and e4m3 are 120 apart.
__device__ __forceinline__ float from_fp8(uint32_t code) {
    const float magnitude = __uint_as_float((code & 0x7fu) << 20) * 0x1p120f;
    return __uint_as_float(__float_as_uint(magnitude) | (code & 0x80u) << 24);
}

template <int kWidth>
__device__ __forceinline__ FloatVector<kWidth> load_fp8(const uint8_t* from) {
    struct __align__(kWidth) Codes {
        uint8_t values[kWidth];
    };
    const Codes codes = *reinterpret_cast<const Codes*>(from);
    FloatVector<kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.values[i] = from_fp8(codes.values[i]);
    return result;
}

}  // namespace ferry
