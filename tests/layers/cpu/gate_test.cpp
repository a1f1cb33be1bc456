#include <cmath>
#include <limits>

#include "tests/layers/cpu/attention_support.h"
#include "tests/support/golden_units.h"
#include "tests/support/reference_attention.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Choice {
    std::vector<int32_t> experts;
    std::vector<float> weights;
    bool operator==(const Choice&) const = default;
};

Choice run_gate(Kernels& kernels, const Tensor& logits, const float* bias, const GateParams& p) {
    const int64_t rows = logits.rows();
    Choice choice{std::vector<int32_t>(static_cast<size_t>(rows * p.topk)),
                  std::vector<float>(static_cast<size_t>(rows * p.topk))};
    const Tensor bias_view(bias, DType::f32, {logits.dim(1)});
    kernels.gate(logits, bias ? &bias_view : nullptr, p,
                 Tensor(choice.experts.data(), DType::i32, {rows, p.topk}),
                 Tensor(choice.weights.data(), DType::f32, {rows, p.topk}));
    return choice;
}

// MODEL.md "Gate", plainly, in the order that layers/cpu/gate.cpp states.
void reference_row(const float* x, int64_t n, const float* bias, const GateParams& p,
                   Choice& choice) {
    std::vector<float> s(x, x + n), c(s.size());
    if (p.score_func == ScoreFunc::sigmoid) {
        for (float& v : s) v = 1 / (1 + reference_exp(-v));
    } else {
        const float maximum = *std::max_element(s.begin(), s.end());
        float sums[16] = {};
        for (size_t i = 0; i < s.size(); ++i) sums[i % 16] += s[i] = reference_exp(s[i] - maximum);
        for (int half : {8, 4, 2, 1})
            for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
        for (float& v : s) v /= sums[0];
    }
    for (size_t i = 0; i < s.size(); ++i) c[i] = bias ? s[i] + bias[i] : s[i];
    const int64_t size = n / p.num_groups;
    std::vector<std::pair<float, int64_t>> groups;  // (-score, index): sorted, the best come first
    for (int64_t g = 0; g < p.num_groups; ++g) {
        std::vector<float> members(c.begin() + g * size, c.begin() + (g + 1) * size);
        std::sort(members.begin(), members.end(), std::greater<>());
        groups.emplace_back(-(bias && size > 1 ? members[0] + members[1] : members[0]), g);
    }
    std::sort(groups.begin(), groups.end());
    if (p.num_groups > 1)
        for (size_t i = static_cast<size_t>(p.num_kept_groups); i < groups.size(); ++i)
            std::fill_n(c.begin() + groups[i].second * size, size, kNever);
    float sum = 0;
    std::vector<float> weights;
    for (int64_t k = 0; k < p.topk; ++k) {
        const auto best = std::max_element(c.begin(), c.end()) - c.begin();
        choice.experts.push_back(static_cast<int32_t>(best));
        weights.push_back(s[static_cast<size_t>(best)]);
        sum += weights.back();
        c[static_cast<size_t>(best)] = kNever;
    }
    for (float w : weights)
        choice.weights.push_back((p.normalise ? w / (sum + 1e-20f) : w) * p.scaling_factor);
}

TEST(Gate, AgreesWithGoldenData) {
    const GoldenUnits golden("gate");
    auto kernels = make_cpu_kernels(2);
    ASSERT_GE(golden.cases().size(), 12u);
    for (const auto& [name, settings] : golden.cases().items()) {
        SCOPED_TRACE(name);
        const GateParams params{.score_func = settings.at("scoring_func") == "sigmoid"
                                                  ? ScoreFunc::sigmoid
                                                  : ScoreFunc::softmax,
                                .topk = settings.at("num_experts_per_tok"),
                                .num_groups = settings.at("n_group"),
                                .num_kept_groups = settings.at("topk_group"),
                                .normalise = settings.at("norm_topk_prob"),
                                .scaling_factor = settings.at("routed_scaling_factor")};
        const auto logits = golden.values<float>(name + ".logits");
        const auto shape = golden.shape(name + ".logits");
        std::vector<float> bias;
        if (golden.has(name + ".bias")) bias = golden.values<float>(name + ".bias");
        const Choice choice =
            run_gate(*kernels, Tensor(logits.data(), DType::f32, {shape[0], shape[1]}),
                     bias.empty() ? nullptr : bias.data(), params);
        EXPECT_EQ(choice.experts, golden.values<int32_t>(name + ".experts"));
        const auto weights = golden.values<float>(name + ".weights");
        ASSERT_EQ(choice.weights.size(), weights.size());
        for (size_t i = 0; i < weights.size(); ++i)
            EXPECT_NEAR(choice.weights[i], weights[i], 2e-6f * std::abs(weights[i]) + 1e-9f) << i;
    }
}

TEST(Gate, HasTheBitsOfTheReference) {
    for (int64_t experts : {4, 10, 64, 160, 256, 384})
        for (ScoreFunc score_func : {ScoreFunc::softmax, ScoreFunc::sigmoid})
            for (bool biased : {false, true}) {
                const int64_t groups = experts % 8 == 0 && experts < 384 ? 8 : 1;
                const GateParams params{.score_func = score_func,
                                        .topk = std::min<int64_t>(8, experts / 2),
                                        .num_groups = groups,
                                        .num_kept_groups = groups == 1 ? 1 : 4,
                                        .normalise = biased,
                                        .scaling_factor = 2.5f};
                const OwnedTensor logits = random_tensor({21, experts}, 7);
                const OwnedTensor bias = random_tensor({experts}, 8);
                const float* biases = biased ? bias.view().as<float>() : nullptr;
                Choice expected;
                for (int64_t row = 0; row < 21; ++row)
                    reference_row(logits.view().row<float>(row), experts, biases, params, expected);
                for_each_vector_target([&] {
                    for (int threads : {1, 2, 3}) {
                        auto kernels = make_cpu_kernels(threads);
                        EXPECT_TRUE(run_gate(*kernels, logits, biases, params) == expected)
                            << experts << " experts, " << threads << " threads";
                    }
                });
            }
}

TEST(Gate, TiesGoToTheLowerIndexAndGroup) {
    auto kernels = make_cpu_kernels(1);
    const std::vector<float> equal(40, 0.5f);
    const Choice choice = run_gate(*kernels, Tensor(equal.data(), DType::f32, {1, 40}), nullptr,
                                   {.topk = 6, .num_groups = 8, .num_kept_groups = 1});
    // The sixth finds nothing left of the one group that is kept: then it is the lowest one.
    EXPECT_EQ(choice.experts, (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
    EXPECT_FLOAT_EQ(choice.weights[0], 1 / 40.0f);
}

TEST(Gate, NotANumberIsChosenLast) {
    auto kernels = make_cpu_kernels(1);
    const float x[] = {1, std::numeric_limits<float>::quiet_NaN(), -100, 2};
    const Choice choice = run_gate(*kernels, Tensor(x, DType::f32, {1, 4}), nullptr,
                                   {.score_func = ScoreFunc::sigmoid, .topk = 3});
    EXPECT_EQ(choice.experts, (std::vector<int32_t>{3, 0, 2}));
}

// The exchange counts on it.
TEST(Gate, ExpertsAreDistinctWhateverTheScores) {
    auto kernels = make_cpu_kernels(1);
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const float x[] = {kNan, kNan, kNan, kNan, kNan, kNan,  // [2, 6]
                       kNan, kNan, kNan, 1,    kNan, kNan};
    for (ScoreFunc score_func : {ScoreFunc::softmax, ScoreFunc::sigmoid}) {
        const Choice choice = run_gate(*kernels, Tensor(x, DType::f32, {2, 6}), nullptr,
                                       {.score_func = score_func, .topk = 4});
        EXPECT_EQ(std::vector<int32_t>(choice.experts.begin(), choice.experts.begin() + 4),
                  (std::vector<int32_t>{0, 1, 2, 3}));
        std::vector<int32_t> second(choice.experts.begin() + 4, choice.experts.end());
        std::ranges::sort(second);
        EXPECT_EQ(second, (std::vector<int32_t>{0, 1, 2, 3}));
    }
}

TEST(Gate, ZeroRows) {
    auto kernels = make_cpu_kernels(2);
    const OwnedTensor logits = zeros({0, 8});
    EXPECT_TRUE(run_gate(*kernels, logits, nullptr, {.topk = 2}).experts.empty());
}

}  // namespace
}  // namespace ferry
