#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

struct Choice {
    std::vector<int32_t> experts;
    std::vector<float> weights;
};

Choice choose_on_cpu(const Matrix& scores, const Tensor* bias, const GateParams& p) {
    const int64_t rows = scores.view.rows();
    Choice choice{std::vector<int32_t>(static_cast<size_t>(rows * p.topk)),
                  std::vector<float>(static_cast<size_t>(rows * p.topk))};
    make_cpu_kernels(1)->gate(scores.view, bias, p,
                              Tensor(choice.experts.data(), DType::i32, {rows, p.topk}),
                              Tensor(choice.weights.data(), DType::f32, {rows, p.topk}));
    return choice;
}

void expect_the_cpus_choice(const Matrix& scores, const Matrix* bias, const GateParams& p) {
    const int64_t rows = scores.view.rows(), num_experts = scores.view.dim(1);
    const Tensor bias_view = bias ? bias->view.reshape({num_experts}) : Tensor();
    const Choice expected = choose_on_cpu(scores, bias ? &bias_view : nullptr, p);
    const CudaTensor scores_device(scores), experts(DType::i32, {rows, p.topk});
    const CudaTensor weights(DType::f32, {rows, p.topk});
    if (bias) {
        const CudaTensor bias_device(bias_view);
        cuda_kernels().gate(scores_device, &bias_device.view(), p, experts, weights);
    } else {
        cuda_kernels().gate(scores_device, nullptr, p, experts, weights);
    }
    EXPECT_EQ(experts.values<int32_t>(), expected.experts);
    expect_same_bits(weights.values(), expected.weights);
}

TEST(CudaGate, ChoosesAsTheCpu) {
    struct Size {
        int64_t experts, topk, groups, kept;
    };
    for (const Size& size : {Size{1, 1, 1, 1}, Size{7, 3, 1, 1}, Size{24, 6, 4, 2},
                             Size{160, 6, 8, 3}, Size{256, 8, 8, 4}, Size{384, 8, 1, 1}})
        for (ScoreFunc score_func : {ScoreFunc::softmax, ScoreFunc::sigmoid})
            for (bool has_bias : {false, true})
                for (int64_t rows : {0, 1, 50}) {
                    SCOPED_TRACE(
                        fmt::format("{} rows, {} experts, bias {}", rows, size.experts, has_bias));
                    const Matrix scores(rows, size.experts, 1), bias(1, size.experts, 2);
                    expect_the_cpus_choice(scores, has_bias ? &bias : nullptr,
                                           {.score_func = score_func,
                                            .topk = size.topk,
                                            .num_groups = size.groups,
                                            .num_kept_groups = size.kept,
                                            .normalise = has_bias,
                                            .scaling_factor = 2.5f});
                }
}

TEST(CudaGate, TiesGoToTheLowerIndex) {
    Matrix scores(3, 64, 1);
    std::fill_n(scores.view.row<float>(0), 64, 0.5f);
    for (int64_t i = 0; i < 64; ++i) scores.view.row<float>(1)[i] = static_cast<float>(i % 3);
    std::fill_n(scores.view.row<float>(2), 64, -200.0f);  // all scores are 0
    for (int64_t groups : {1, 8})
        for (ScoreFunc score_func : {ScoreFunc::softmax, ScoreFunc::sigmoid})
            expect_the_cpus_choice(scores, nullptr,
                                   {.score_func = score_func,
                                    .topk = 8,
                                    .num_groups = groups,
                                    .num_kept_groups = std::min<int64_t>(groups, 4)});
}

// Weights that are no numbers are the same: their bits need not be.
TEST(CudaGate, ScoresThatAreNoNumbers) {
    Matrix scores(3, 24);  // NaN
    std::fill_n(scores.view.row<float>(1), 3, 0.5f);
    std::fill_n(scores.view.row<float>(2), 24, 0.5f);
    const GateParams p{
        .score_func = ScoreFunc::sigmoid, .topk = 6, .num_groups = 4, .num_kept_groups = 2};
    const CudaTensor on_device(scores), experts(DType::i32, {3, 6}), weights(DType::f32, {3, 6});
    cuda_kernels().gate(on_device, nullptr, p, experts, weights);
    EXPECT_EQ(experts.values<int32_t>(), choose_on_cpu(scores, nullptr, p).experts);
}

TEST(CudaGate, ManyRows) {
    const Matrix scores(600, 16, 1);
    expect_the_cpus_choice(scores, nullptr,
                           {.score_func = ScoreFunc::sigmoid, .topk = 4, .normalise = true});
}

}  // namespace
}  // namespace ferry
