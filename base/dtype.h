// Element types of tensors, and the scalar conversions that define bf16 and fp8 here. Vector code
// must agree bit for bit.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/check.h"

namespace ferry {

// int4x2: bytes of two values each, of columns 2i (low half) and 2i + 1; see int4_value().
enum class DType : uint8_t { f32, bf16, fp8_e4m3, int4x2, i32, u8 };

constexpr int64_t size_bytes(DType dtype) {
    switch (dtype) {
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::bf16:
            return 2;
        case DType::fp8_e4m3:
        case DType::int4x2:
        case DType::u8:
            return 1;
    }
    return 0;
}

constexpr std::string_view to_string(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "f32";
        case DType::bf16:
            return "bf16";
        case DType::fp8_e4m3:
            return "fp8_e4m3";
        case DType::int4x2:
            return "int4x2";
        case DType::i32:
            return "i32";
        case DType::u8:
            return "u8";
    }
    return "?";
}

constexpr std::optional<DType> parse_dtype(std::string_view name) {
    for (DType dtype :
         {DType::f32, DType::bf16, DType::fp8_e4m3, DType::int4x2, DType::i32, DType::u8})
        if (to_string(dtype) == name) return dtype;
    return std::nullopt;
}

// bf16: the upper half of an f32. Rounding to nearest, ties to even; NaN stays NaN.
constexpr float bf16_to_f32(uint16_t value) {
    return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}
constexpr uint16_t f32_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// fp8 e4m3 "fn": sign 1, exponent 4 (bias 7), mantissa 3; no infinity, NaN is 0x7f and 0xff,
// largest finite 448.
constexpr float kFp8Max = 448.0f;
constexpr float fp8_e4m3_to_f32(uint8_t value) {
    const uint32_t sign = static_cast<uint32_t>(value & 0x80u) << 24;
    const uint32_t exponent = (value >> 3) & 0xfu;
    const uint32_t mantissa = value & 0x7u;
    if (exponent == 0xf && mantissa == 0x7) return std::bit_cast<float>(sign | 0x7fc00000u);
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
        return sign ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}
// Nearest, ties to even; beyond 448 saturates to 448 (as quantisers do), NaN stays NaN.
constexpr uint8_t f32_to_fp8_e4m3(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
    if (magnitude >= std::bit_cast<uint32_t>(kFp8Max)) return static_cast<uint8_t>(sign | 0x7eu);
    if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {  // subnormal in e4m3: multiples of 2^-9
        // Adding 2^14 leaves the multiple of 2^-9, rounded to nearest even, in the low mantissa
        // bits.
        const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
        return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xfu));
    }
    const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
    return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

// The value of one half (0: low) of an int4x2 byte: -8 to 7, stored as 0 to 15.
constexpr int int4_value(uint8_t byte, int64_t half) {
    return (byte >> (half * 4) & 15) - 8;
}

}  // namespace ferry
