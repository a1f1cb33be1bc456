#include "base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

TEST(Bf16, RoundsToNearestEven) {
    EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
    EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);                     // tie, even below
    EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-7f + 0x1p-8f), 0x3f82);           // tie, even above
    EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);          // above the tie
    EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);  // rounds to infinity
    EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(Fp8, DecodesEveryCodeByItsFields) {
    for (int code = 0; code < 256; ++code) {
        const int exponent = (code >> 3) & 15, mantissa = code & 7;
        const float value = fp8_e4m3_to_f32(static_cast<uint8_t>(code));
        if (exponent == 15 && mantissa == 7) {
            EXPECT_TRUE(std::isnan(value)) << code;
            continue;
        }
        double expected = exponent == 0 ? mantissa / 8.0 * std::pow(2, -6)
                                        : (1 + mantissa / 8.0) * std::pow(2, exponent - 7);
        if (code & 0x80) expected = -expected;
        EXPECT_EQ(value, expected) << code;
        EXPECT_EQ(f32_to_fp8_e4m3(value), code);
    }
    EXPECT_EQ(fp8_e4m3_to_f32(0x7e), 448.0f);
}

TEST(Fp8, RoundsToNearestEvenAndSaturates) {
    EXPECT_EQ(f32_to_fp8_e4m3(1.0625f), 0x38);  // tie between 1 and 1.125: even
    EXPECT_EQ(f32_to_fp8_e4m3(1.1875f), 0x3a);  // tie between 1.125 and 1.25: even
    EXPECT_EQ(f32_to_fp8_e4m3(1.07f), 0x39);
    EXPECT_EQ(f32_to_fp8_e4m3(0x1p-10f), 0x00);   // half of the smallest subnormal: even
    EXPECT_EQ(f32_to_fp8_e4m3(0x1.8p-9f), 0x02);  // between 1 and 2 units: even
    EXPECT_EQ(f32_to_fp8_e4m3(0x1.fp-7f), 0x08);  // rounds up into the normal range
    EXPECT_EQ(f32_to_fp8_e4m3(460.0f), 0x7e);
    EXPECT_EQ(f32_to_fp8_e4m3(-1e30f), 0xfe);
    EXPECT_EQ(f32_to_fp8_e4m3(std::numeric_limits<float>::infinity()), 0x7e);
    EXPECT_EQ(f32_to_fp8_e4m3(std::nanf("")), 0x7f);
}

TEST(Fp8, AgreesWithExhaustiveNearestSearch) {
    for (int step = -4600; step <= 4600; ++step) {
        const float value = static_cast<float>(step) * 0.0973f;
        float best = 1e9f;
        for (int code = 0; code < 256; ++code) {
            const float candidate = fp8_e4m3_to_f32(static_cast<uint8_t>(code));
            if (!std::isnan(candidate) && std::abs(candidate - value) < std::abs(best - value))
                best = candidate;
        }
        EXPECT_EQ(std::abs(fp8_e4m3_to_f32(f32_to_fp8_e4m3(value)) - value), std::abs(best - value))
            << value;
    }
}

TEST(DType, NamesParseBack) {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3, DType::i32, DType::u8})
        EXPECT_EQ(parse_dtype(to_string(dtype)), dtype);
    EXPECT_EQ(parse_dtype("f64"), std::nullopt);
}

}  // namespace
}  // namespace ferry
