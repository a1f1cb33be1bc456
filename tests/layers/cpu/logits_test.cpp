#include <gtest/gtest.h>

#include <cmath>

#include "layers/kernels.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_attention.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

// The order of operations of layers/cpu/logits.cpp.
float reference_log_sum_exp(const float* x, int64_t count) {
    const float best = *std::max_element(x, x + count);
    float sums[16] = {};
    for (int64_t i = 0; i < count; ++i) sums[i % 16] += reference_exp(x[i] - best);
    for (int width = 8; width >= 1; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    return best + static_cast<float>(std::log(static_cast<double>(sums[0])));
}

TEST(Logits, HaveTheBitsOfTheReference) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(3);
        for (int64_t rows : {0, 1, 6})
            for (int64_t vocab : {1, 9, 16, 500, 5001}) {
                Matrix logits(rows, vocab, 1);
                for (float& value : logits.values) value *= 5;
                std::vector<float> lse(static_cast<size_t>(rows));
                std::vector<int32_t> argmax(static_cast<size_t>(rows));
                kernels->log_sum_exp(logits.view, Tensor(lse.data(), DType::f32, {rows}), argmax);
                for (int64_t row = 0; row < rows; ++row) {
                    const float* x = logits.view.row<float>(row);
                    const size_t i = static_cast<size_t>(row);
                    EXPECT_EQ(lse[i], reference_log_sum_exp(x, vocab));
                    EXPECT_EQ(argmax[i], std::max_element(x, x + vocab) - x);
                    double exact = 0;
                    for (int64_t j = 0; j < vocab; ++j) exact += std::exp(double{x[j]});
                    EXPECT_NEAR(lse[i], std::log(exact), 2e-6 * std::abs(std::log(exact)) + 1e-6);
                }
            }
    });
}

TEST(Logits, TiesGoToTheLowestIndex) {
    float logits[40], lse;
    std::fill_n(logits, 40, -3.0f);
    for (int i : {17, 20, 33, 39}) logits[i] = 2.5f;
    int32_t argmax[1];
    for_each_vector_target([&] {
        make_cpu_kernels(1)->log_sum_exp(Tensor(logits, DType::f32, {1, 40}),
                                         Tensor(&lse, DType::f32, {1}), argmax);
        EXPECT_EQ(argmax[0], 17);
    });
}

}  // namespace
}  // namespace ferry
