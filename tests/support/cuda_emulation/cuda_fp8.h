// Stands in for CUDA's header of this name (cuda_runtime.h beside it). e4m3 only.
#pragma once
#include "base/dtype.h"
#include "cuda_runtime.h"

using __nv_fp8_storage_t = uint8_t;
using __nv_fp8x2_storage_t = uint16_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

struct __half_raw {
    uint16_t x;
};
struct __half2_raw {
    uint16_t x, y;
};

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t,
                                                __nv_fp8_interpretation_t) {
    return ferry::f32_to_fp8_e4m3(value);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 value, __nv_saturation_t,
                                                     __nv_fp8_interpretation_t) {
    return static_cast<__nv_fp8x2_storage_t>(ferry::f32_to_fp8_e4m3(value.x) |
                                             ferry::f32_to_fp8_e4m3(value.y) << 8);
}
