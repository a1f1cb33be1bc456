#include "comm/row_codec.h"

#include <cstring>

#include "base/check.h"

// Highway compiles this file once per instruction set and picks at run time; the loops below are
// plain and branch-free, for the compiler to vectorise.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/row_codec.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

constexpr int64_t kBlock = 128;

inline uint32_t to_bits(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
inline float to_float(uint32_t x) {
    return __builtin_bit_cast(float, x);
}

void EncodeBf16(const float* x, int64_t dim, uint16_t* out) {
    for (int64_t i = 0; i < dim; ++i) {
        const uint32_t bits = to_bits(x[i]);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const uint32_t quiet_nan = (bits >> 16) | 0x40u;
        out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
    }
}

void EncodeFp8Block(const float* x, int64_t num, uint8_t* out, float* scale) {
    int32_t max_bits = static_cast<int32_t>(to_bits(1e-4f));
    for (int64_t i = 0; i < num; ++i) {  // magnitudes order as integers
        const int32_t bits = static_cast<int32_t>(to_bits(x[i]) & 0x7fffffffu);
        max_bits = bits > max_bits ? bits : max_bits;
    }
    const float s = to_float(static_cast<uint32_t>(max_bits)) / kFp8Max;
    *scale = s;
    for (int64_t i = 0; i < num; ++i) {
        const uint32_t bits = to_bits(x[i] / s);
        const uint32_t magnitude = bits & 0x7fffffffu;
        const uint32_t subnormal = to_bits(to_float(magnitude) + 0x1p14f) & 0xfu;
        const uint32_t normal =
            ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
        uint32_t code = magnitude < 0x3c800000u ? subnormal : normal;  // below 2^-6
        code = magnitude >= 0x43e00000u ? 0x7eu : code;                // 448 and beyond
        code = magnitude > 0x7f800000u ? 0x7fu : code;                 // NaN
        out[i] = static_cast<uint8_t>(((bits >> 24) & 0x80u) | code);
    }
}

void EncodeFp8(const float* x, int64_t dim, uint8_t* out, float* scales) {
    for (int64_t i = 0; i < dim; i += kBlock)
        EncodeFp8Block(x + i, dim - i < kBlock ? dim - i : kBlock, out + i, scales + i / kBlock);
}

void DecodeBf16(const uint16_t* in, int64_t dim, float* out) {
    for (int64_t i = 0; i < dim; ++i) out[i] = to_float(static_cast<uint32_t>(in[i]) << 16);
}

void DecodeFp8Block(const uint8_t* in, int64_t num, float scale, float* out) {
    for (int64_t i = 0; i < num; ++i) {
        const uint32_t code = in[i];
        const uint32_t sign = (code & 0x80u) << 24;
        const uint32_t magnitude = code & 0x7fu;
        const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
        uint32_t bits = magnitude < 8u ? to_bits(subnormal) : (magnitude + (120u << 3)) << 20;
        bits = magnitude == 0x7fu ? 0x7fc00000u : bits;
        out[i] = to_float(sign | bits) * scale;
    }
}

void DecodeFp8(const uint8_t* in, const float* scales, int64_t dim, float* out) {
    for (int64_t i = 0; i < dim; i += kBlock)
        DecodeFp8Block(in + i, dim - i < kBlock ? dim - i : kBlock, scales[i / kBlock], out + i);
}

void AccumulateF32(const float* __restrict in, float weight, bool first, int64_t dim,
                   float* __restrict out) {
    if (first)
        for (int64_t i = 0; i < dim; ++i) out[i] = weight * in[i];
    else
        for (int64_t i = 0; i < dim; ++i) out[i] = out[i] + weight * in[i];
}

void AccumulateBf16(const uint16_t* __restrict in, float weight, bool first, int64_t dim,
                    float* __restrict out) {
    if (first)
        for (int64_t i = 0; i < dim; ++i)
            out[i] = weight * to_float(static_cast<uint32_t>(in[i]) << 16);
    else
        for (int64_t i = 0; i < dim; ++i)
            out[i] = out[i] + weight * to_float(static_cast<uint32_t>(in[i]) << 16);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(EncodeBf16);
HWY_EXPORT(EncodeFp8);
HWY_EXPORT(DecodeBf16);
HWY_EXPORT(DecodeFp8);
HWY_EXPORT(AccumulateF32);
HWY_EXPORT(AccumulateBf16);

void encode_row(DType dtype, const float* x, int64_t dim, std::byte* out, float* scales) {
    switch (dtype) {
        case DType::f32:
            std::memcpy(out, x, static_cast<size_t>(dim) * sizeof(float));
            return;
        case DType::bf16:
            return HWY_DYNAMIC_DISPATCH(EncodeBf16)(x, dim, reinterpret_cast<uint16_t*>(out));
        case DType::fp8_e4m3:
            return HWY_DYNAMIC_DISPATCH(EncodeFp8)(x, dim, reinterpret_cast<uint8_t*>(out), scales);
        default:
            FERRY_CHECK(false, "rows of {} do not travel", to_string(dtype));
    }
}

void decode_row(DType dtype, const std::byte* in, const float* scales, int64_t dim, float* out) {
    switch (dtype) {
        case DType::f32:
            std::memcpy(out, in, static_cast<size_t>(dim) * sizeof(float));
            return;
        case DType::bf16:
            return HWY_DYNAMIC_DISPATCH(DecodeBf16)(reinterpret_cast<const uint16_t*>(in), dim,
                                                    out);
        case DType::fp8_e4m3:
            return HWY_DYNAMIC_DISPATCH(DecodeFp8)(reinterpret_cast<const uint8_t*>(in), scales,
                                                   dim, out);
        default:
            FERRY_CHECK(false, "rows of {} do not travel", to_string(dtype));
    }
}

void accumulate_row(DType dtype, const std::byte* in, float weight, bool first, int64_t dim,
                    float* out) {
    if (dtype == DType::f32)
        return HWY_DYNAMIC_DISPATCH(AccumulateF32)(reinterpret_cast<const float*>(in), weight,
                                                   first, dim, out);
    FERRY_CHECK(dtype == DType::bf16, "rows of {} do not come back", to_string(dtype));
    HWY_DYNAMIC_DISPATCH(AccumulateBf16)
    (reinterpret_cast<const uint16_t*>(in), weight, first, dim, out);
}

}  // namespace ferry
#endif
