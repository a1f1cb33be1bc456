// Stands in for CUDA's header of this name (cuda_runtime.h beside it).
#pragma once
#include "base/dtype.h"
#include "cuda_runtime.h"

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __align__(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 value) {
    return ferry::bf16_to_f32(value.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    return {ferry::f32_to_bf16(value)};
}
inline __nv_bfloat16 __float2bfloat16(float value) {
    return __float2bfloat16_rn(value);
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
    return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) {
    return __floats2bfloat162_rn(value.x, value.y);
}
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
    const float2 x = __bfloat1622float2(a), y = __bfloat1622float2(b);
    return __floats2bfloat162_rn(x.x - y.x, x.y - y.y);
}
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    const float2 x = __bfloat1622float2(a), y = __bfloat1622float2(b);
    return __floats2bfloat162_rn(x.x * y.x, x.y * y.y);
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) {
    return value.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
    return {bits};
}
