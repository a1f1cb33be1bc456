#include <gtest/gtest.h>

#include <cmath>

#include "layers/kernels.h"
#include "tests/support/golden_units.h"
#include "tests/support/matrix.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

// The order of operations that kernels.h states.
void reference_rms_norm(const Tensor& x, const float* weight, float eps, const Tensor& y) {
    const int64_t dim = x.dim(1);
    for (int64_t row = 0; row < x.rows(); ++row) {
        const float* in = x.row<float>(row);
        float sums[16] = {};
        for (int64_t i = 0; i < dim; ++i) sums[i % 16] = std::fma(in[i], in[i], sums[i % 16]);
        for (int width = 8; width >= 1; width /= 2)
            for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
        const float scale = 1 / std::sqrt(sums[0] / static_cast<float>(dim) + eps);
        for (int64_t i = 0; i < dim; ++i) y.row<float>(row)[i] = in[i] * scale * weight[i];
    }
}

TEST(RmsNorm, HasTheBitsOfTheReference) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        for (int64_t rows : {0, 1, 40})
            for (int64_t dim : {1, 15, 16, 64, 100, 2048}) {
                const Matrix x(rows, dim, 1), weight(1, dim, 2);
                Matrix y(rows, dim), expected(rows, dim);
                reference_rms_norm(x.view, weight.values.data(), 1e-6f, expected.view);
                kernels->rms_norm(x.view, weight.view.reshape({dim}), 1e-6f, y.view);
                EXPECT_EQ(num_different(y, expected), 0) << rows << " x " << dim;
            }
    });
}

TEST(LayerNorm, HasTheBitsOfTheReferenceInPlace) {
    constexpr float kEps = 1e-6f;
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        for (int64_t rows : {0, 1, 40})
            for (int64_t dim : {1, 7, 16, 24, 100, 128}) {
                Matrix x(rows, dim, 1), expected(rows, dim, 1);
                const Matrix weight(1, dim, 2), bias(1, dim, 3);
                for (int64_t row = 0; row < rows; ++row) {
                    float* values = expected.view.row<float>(row);
                    const auto sum_of = [&](auto&& add) {
                        float sums[16] = {};
                        for (int64_t i = 0; i < dim; ++i)
                            sums[i % 16] = add(values[i], sums[i % 16]);
                        for (int width = 8; width >= 1; width /= 2)
                            for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
                        return sums[0] / static_cast<float>(dim);
                    };
                    const float mean = sum_of([](float value, float sum) { return sum + value; });
                    const float variance = sum_of([mean](float value, float sum) {
                        return std::fma(value - mean, value - mean, sum);
                    });
                    const float scale = 1 / std::sqrt(variance + kEps);
                    for (int64_t i = 0; i < dim; ++i)
                        values[i] = std::fma((values[i] - mean) * scale,
                                             weight.values[static_cast<size_t>(i)],
                                             bias.values[static_cast<size_t>(i)]);
                }
                kernels->layer_norm(x.view, weight.view.reshape({dim}), bias.view.reshape({dim}),
                                    kEps, x.view);
                EXPECT_EQ(num_different(x, expected), 0) << rows << " x " << dim;
            }
    });
}

TEST(RmsNorm, InPlaceOnARangeOfColumns) {
    Matrix x(3, 80, 1), expected(3, 80, 1);
    const Matrix weight(1, 50, 2);
    reference_rms_norm(expected.view.slice_columns(10, 50), weight.values.data(), 1e-6f,
                       expected.view.slice_columns(10, 50));
    const Tensor part = x.view.slice_columns(10, 50);
    make_cpu_kernels(1)->rms_norm(part, weight.view.reshape({50}), 1e-6f, part);
    EXPECT_EQ(num_different(x, expected), 0);
}

TEST(RmsNorm, AfterAddingHasTheBitsOfBoth) {
    const auto kernels = make_cpu_kernels(1);
    const Matrix x(3, 50, 1), weight(1, 50, 3);
    Matrix h(3, 50, 2), fused_h(3, 50, 2), y(3, 50), fused_y(3, 50);
    const Tensor factors = weight.view.reshape({50});
    kernels->add(x.view, h.view);
    kernels->rms_norm(h.view, factors, 1e-6f, y.view);
    kernels->add_rms_norm(x.view, fused_h.view, factors, 1e-6f, fused_y.view);
    EXPECT_EQ(num_different(fused_h, h), 0);
    EXPECT_EQ(num_different(fused_y, y), 0);
}

TEST(RmsNorm, Golden) {
    const GoldenUnits golden("rms_norm");
    ASSERT_GE(golden.cases().size(), 4u);
    const auto kernels = make_cpu_kernels(1);
    for (const auto& [name, settings] : golden.cases().items()) {
        const auto x = golden.values<float>(name + ".x");
        const auto weight = golden.values<float>(name + ".weight");
        const auto expected = golden.values<float>(name + ".y");
        const int64_t dim = static_cast<int64_t>(weight.size());
        const int64_t rows = static_cast<int64_t>(x.size()) / dim;
        Matrix y(rows, dim);
        kernels->rms_norm(Tensor(x.data(), DType::f32, {rows, dim}),
                          Tensor(weight.data(), DType::f32, {dim}), settings.at("eps").get<float>(),
                          y.view);
        for (size_t i = 0; i < expected.size(); ++i)
            EXPECT_NEAR(y.values[i], expected[i], 1e-6f * std::abs(expected[i]))
                << name << " " << i;
    }
}

}  // namespace
}  // namespace ferry
