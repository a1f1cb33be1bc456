#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/golden_units.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_linear.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

TEST(QuantiseFp8, HasTheBitsOfTheReference) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        for (bool power_of_two : {false, true})
            for (int64_t rows : {0, 1, 150})
                for (int64_t columns : {1, 16, 128, 130, 300}) {
                    Matrix x(rows, columns, 1);
                    for (size_t i = 0; i < x.values.size(); ++i)  // all magnitudes
                        x.values[i] *= std::ldexp(1.0f, static_cast<int>(i * 7 % 31) - 20);
                    const int64_t blocks = ceil_div(columns, kScaleBlock);
                    Matrix q(rows, columns), scales(rows, blocks);
                    Matrix expected_q(rows, columns), expected_scales(rows, blocks);
                    reference_quantise_fp8(x.view, power_of_two, expected_q.view,
                                           expected_scales.view);
                    kernels->quantise_fp8(x.view, power_of_two, q.view, scales.view);
                    EXPECT_EQ(num_different(q, expected_q), 0) << rows << " x " << columns;
                    EXPECT_EQ(num_different(scales, expected_scales), 0);
                    kernels->quantise_fp8(x.view, power_of_two, x.view, scales.view);
                    EXPECT_EQ(num_different(x, expected_q), 0) << "in place";
                }
    });
}

// With the scale fixed at 1 by a first value of 448, q must be what base/dtype.h rounds to.
TEST(QuantiseFp8, RoundsAsTheScalarConversionDoes) {
    std::vector<float> values;
    for (uint32_t bits = 0; bits < 0x43e00000u; bits += 12345)
        values.push_back(std::bit_cast<float>(bits));
    for (int code = 0; code < 0x7e; ++code) {  // between two codes: ties and their neighbours
        const float middle = (fp8_e4m3_to_f32(static_cast<uint8_t>(code)) +
                              fp8_e4m3_to_f32(static_cast<uint8_t>(code + 1))) /
                             2;
        for (float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 448.0f)})
            values.push_back(value);
    }
    for_each_vector_target([&] {
        const auto kernels = make_cpu_kernels(1);
        for (size_t i = 0; i < values.size(); i += 63) {
            float block[128] = {448.0f, -448.0f}, q[128], scale;
            const size_t count = std::min<size_t>(63, values.size() - i);
            for (size_t j = 0; j < count; ++j) {
                block[2 + j] = values[i + j];
                block[65 + j] = -values[i + j];
            }
            kernels->quantise_fp8(Tensor(block, DType::f32, {1, 128}), false,
                                  Tensor(q, DType::f32, {1, 128}),
                                  Tensor(&scale, DType::f32, {1, 1}));
            ASSERT_EQ(scale, 1.0f);
            for (int j = 0; j < 128; ++j) {
                const float expected = fp8_e4m3_to_f32(f32_to_fp8_e4m3(block[j]));
                ASSERT_EQ(std::bit_cast<uint32_t>(q[j]), std::bit_cast<uint32_t>(expected))
                    << block[j];
            }
        }
    });
}

TEST(QuantiseFp8, PowersOfTwoStayAndOthersGoUp) {
    for (float largest : {448.0f, 449.0f, 447.0f, 896.0f}) {
        float x[] = {largest}, q, scale;
        make_cpu_kernels(1)->quantise_fp8(Tensor(x, DType::f32, {1, 1}), true,
                                          Tensor(&q, DType::f32, {1, 1}),
                                          Tensor(&scale, DType::f32, {1, 1}));
        EXPECT_EQ(scale, largest <= 448 ? 1.0f : 2.0f) << largest;
    }
}

// fp8 linear layers as MODEL.md defines them, worked out in f64 outside this project.
TEST(QuantiseFp8, GoldenLinear) {
    const GoldenUnits golden("fp8_linear");
    ASSERT_GE(golden.cases().size(), 4u);
    const auto kernels = make_cpu_kernels(2);
    for (const auto& [name, settings] : golden.cases().items()) {
        const int64_t rows = settings.at("rows"), in = settings.at("k"), out = settings.at("out");
        const auto x = golden.values<float>(name + ".x");
        const auto codes = golden.values<uint8_t>(name + ".weight");
        const auto weight_scales = golden.values<float>(name + ".weight_scale_inv");
        const int64_t blocks = ceil_div(in, kScaleBlock);
        const Tensor w_scales(weight_scales.data(), DType::f32,
                              {ceil_div(out, kScaleBlock), blocks});
        Weight weight =
            kernels->make_weight({.dtype = DType::fp8_e4m3, .groups = 1, .out = out, .in = in});
        kernels->pack(weight, 0, 0, Tensor(codes.data(), DType::fp8_e4m3, {out, in}), &w_scales);

        const Tensor x_view(x.data(), DType::f32, {rows, in});
        Matrix q(rows, in), scales(rows, blocks), y(rows, out), y_fp8(rows, out);
        kernels->gemm(x_view, weight, y.view);
        kernels->quantise_fp8(x_view, false, q.view, scales.view);
        EXPECT_EQ(scales.values, golden.values<float>(name + ".x_scales")) << name;
        kernels->gemm(q.view, weight, y_fp8.view, &scales.view);
        const auto near = [&](const Matrix& result, const std::string& key) {
            const auto expected = golden.values<float>(name + key);
            float largest = 0;
            for (float value : expected) largest = std::max(largest, std::abs(value));
            for (size_t i = 0; i < expected.size(); ++i)
                EXPECT_NEAR(result.values[i], expected[i], 1e-5f * largest) << name << key;
        };
        near(y, ".y_widened");
        near(y_fp8, ".y_fp8");
        kernels->quantise_fp8(x_view, true, q.view, scales.view);
        EXPECT_EQ(scales.values, golden.values<float>(name + ".x_scales_ue8m0")) << name;
    }
}

TEST(TreeSum, AddsByHalves) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        for (int64_t parts : {1, 2, 3, 4, 5, 8, 13})
            for (int64_t columns : {5, 64, 1500}) {
                const Matrix all(parts, 7 * columns, 1);
                Matrix y(7, columns), expected(7, columns);
                const Tensor view = all.view.reshape({parts, 7, columns});
                reference_tree_sum(view, expected.view);
                kernels->tree_sum(view, y.view);
                EXPECT_EQ(num_different(y, expected), 0) << parts << " parts of " << columns;
            }
    });
}

}  // namespace
}  // namespace ferry
