#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "tests/support/reference_attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/layers/cpu/exp_test.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"
#include "tests/support/vector_targets.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

void exp_of_16(const float* x, float* y) {
    const Floats d;
    for (int i = 0; i < 16; i += kLanes) hn::StoreU(fast_exp(hn::LoadU(d, x + i)), d, y + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(exp_of_16);

// Distance in units in the last place of the exact result.
double error_ulp(float x) {
    const double exact = std::exp(static_cast<double>(x));
    const double ulp = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
    return std::abs(static_cast<double>(reference_exp(x)) - exact) / ulp;
}

// Calls body(x) for every `step`-th float in [low, high], both of one sign.
template <typename Body>
void for_floats(float low, float high, uint32_t step, Body&& body) {
    const uint32_t a = std::bit_cast<uint32_t>(low), b = std::bit_cast<uint32_t>(high);
    for (uint64_t bits = std::min(a, b); bits <= std::max(a, b); bits += step)
        body(std::bit_cast<float>(static_cast<uint32_t>(bits)));
}

TEST(Exp, IsWithinOneUlp) {
    double worst = 0;
    const auto measure = [&](float x) { worst = std::max(worst, error_ulp(x)); };
    for_floats(0.0f, 88.7228f, 499, measure);
    for_floats(-0.0f, -87.33f, 499, measure);
    EXPECT_LT(worst, 1.0);
    EXPECT_GT(worst, 0.5);  // or the measurement measures nothing
}

TEST(Exp, Edges) {
    EXPECT_EQ(reference_exp(0.0f), 1.0f);
    EXPECT_EQ(reference_exp(-0.0f), 1.0f);
    EXPECT_EQ(reference_exp(-std::numeric_limits<float>::infinity()), 0.0f);
    EXPECT_EQ(reference_exp(std::numeric_limits<float>::infinity()),
              std::numeric_limits<float>::infinity());
    EXPECT_EQ(reference_exp(-87.34f), 0.0f);
    EXPECT_GE(reference_exp(-87.33f), std::numeric_limits<float>::min());
    EXPECT_TRUE(std::isfinite(reference_exp(88.72283f)));
    EXPECT_TRUE(std::isnan(reference_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Exp, VectorsHaveTheBitsOfTheReference) {
    for_each_vector_target([] {
        float x[16], y[16];
        int filled = 0, different = 0;
        const auto check = [&](float value) {
            x[filled++] = value;
            if (filled < 16) return;
            filled = 0;
            HWY_DYNAMIC_DISPATCH(exp_of_16)(x, y);
            for (int i = 0; i < 16; ++i)
                different +=
                    std::bit_cast<uint32_t>(y[i]) != std::bit_cast<uint32_t>(reference_exp(x[i]));
        };
        for_floats(0.0f, std::numeric_limits<float>::infinity(), 20011, check);
        for_floats(-0.0f, -std::numeric_limits<float>::infinity(), 20011, check);
        EXPECT_EQ(different, 0);
    });
}

}  // namespace
}  // namespace ferry
#endif  // HWY_ONCE
