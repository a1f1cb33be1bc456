#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

TEST(CudaLogits, LogSumExpAndArgMaxAgreeWithTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t rows : {0, 1, 5})
        for (int64_t vocab : {1, 31, 512, 5000}) {
            SCOPED_TRACE(fmt::format("{} x {}", rows, vocab));
            Matrix logits(rows, vocab, 1), lse(rows, 1);
            if (rows == 5) {
                std::fill_n(logits.view.row<float>(1), vocab, 3.0f);   // ties
                std::fill_n(logits.view.row<float>(2), vocab, -1e4f);  // far from 0
                logits.view.row<float>(3)[vocab / 2] = 1e4f;
                logits.view.row<float>(4)[0] = std::nanf("");
                if (vocab > 1) logits.view.row<float>(0)[vocab - 1] = 50;
            }
            std::vector<int32_t> expected(static_cast<size_t>(rows)), argmax(expected.size());
            cpu->log_sum_exp(logits.view, lse.view.reshape({rows}), expected);
            const CudaTensor on_device(logits), lse_device(DType::f32, {rows});
            cuda_kernels().log_sum_exp(on_device, lse_device, argmax);
            EXPECT_EQ(argmax, expected);
            const std::vector<float> got = lse_device.values();
            for (size_t i = 0; i < got.size(); ++i) {
                if (i == 4) continue;  // of NaN there is none
                EXPECT_NEAR(got[i], lse.values[i], 1e-6f * std::abs(lse.values[i]) + 1e-6f) << i;
            }
        }
}

}  // namespace
}  // namespace ferry
