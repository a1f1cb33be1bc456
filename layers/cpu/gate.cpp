// Choosing experts. Orders that fix the bits: softmax is exp(x_i - max) / sum, the sum in 16
// interleaved partial sums (expert i into sum i mod 16, ascending), then by halves: sum i += sum
// i + 8, i + 4, i + 2, i + 1. Sigmoid is 1 / (1 + exp(-x)). Weights are summed in slot order. The
// exponential is fast_exp (vector-inl.h). A choice that is not a number is never chosen while any
// other is left.
#include <algorithm>
#include <limits>

#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/gate.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

#ifndef FERRY_LAYERS_CPU_GATE_ONCE
#define FERRY_LAYERS_CPU_GATE_ONCE
namespace ferry {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kPartialSums = 16;

// A thread's scratch; experts are padded to a multiple of kPartialSums by ones that score 0 and
// are never chosen.
struct GateRow {
    int64_t num_experts, padded;
    float* scores;        // [padded]
    float* choice;        // [padded]
    float* group_scores;  // [groups]

    GateRow(std::byte* scratch, int64_t experts)
        : num_experts(experts),
          padded(ceil_div(experts, kPartialSums) * kPartialSums),
          scores(reinterpret_cast<float*>(scratch)),
          choice(scores + padded),
          group_scores(choice + padded) {}
};

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

void score_row(const GateRow& row, ScoreFunc score_func, const float* x, const float* bias) {
    const Floats d;
    const FloatVector one = hn::Set(d, 1.0f), never = hn::Set(d, kNever);
    float* s = row.scores;
    std::copy_n(x, row.num_experts, s);
    std::fill(s + row.num_experts, s + row.padded, kNever);
    if (score_func == ScoreFunc::sigmoid) {
        for (int64_t i = 0; i < row.padded; i += kLanes) {
            const FloatVector e = fast_exp(hn::Neg(hn::Load(d, s + i)));
            hn::Store(hn::Div(one, hn::Add(one, e)), d, s + i);
        }
    } else {
        FloatVector maximum = never;
        for (int64_t i = 0; i < row.padded; i += kLanes)
            maximum = hn::Max(maximum, hn::Load(d, s + i));
        maximum = hn::MaxOfLanes(d, maximum);
        HWY_ALIGN float sums[kPartialSums] = {};
        for (int64_t i = 0; i < row.padded; i += kPartialSums)
            for (int64_t lane = 0; lane < kPartialSums; lane += kLanes) {
                const FloatVector e = fast_exp(hn::Sub(hn::Load(d, s + i + lane), maximum));
                hn::Store(e, d, s + i + lane);
                hn::Store(hn::Add(hn::Load(d, sums + lane), e), d, sums + lane);
            }
        for (int64_t width = kPartialSums / 2; width >= 1; width /= 2)
            for (int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
        const FloatVector sum = hn::Set(d, sums[0]);
        for (int64_t i = 0; i < row.padded; i += kLanes)
            hn::Store(hn::Div(hn::Load(d, s + i), sum), d, s + i);
    }
    for (int64_t i = 0; i < row.num_experts; ++i) row.choice[i] = bias ? s[i] + bias[i] : s[i];
    std::fill(row.choice + row.num_experts, row.choice + row.padded, kNever);
    for (int64_t i = 0; i < row.padded; i += kLanes) {
        const FloatVector c = hn::Load(d, row.choice + i);
        hn::Store(hn::IfThenElse(hn::Eq(c, c), c, never), d, row.choice + i);
    }
}

// The lowest index of the highest choice; -1: all that is left is to be chosen never.
int64_t best_expert(const GateRow& row) {
    const Floats d;
    FloatVector maximum = hn::Load(d, row.choice);
    for (int64_t i = kLanes; i < row.padded; i += kLanes)
        maximum = hn::Max(maximum, hn::Load(d, row.choice + i));
    maximum = hn::MaxOfLanes(d, maximum);
    if (hn::GetLane(maximum) == kNever) return -1;
    for (int64_t i = 0; i < row.padded; i += kLanes) {
        const intptr_t lane = hn::FindFirstTrue(d, hn::Eq(hn::Load(d, row.choice + i), maximum));
        if (lane >= 0) return i + lane;
    }
    return -1;
}

// Of a token whose scores are no numbers, too, the experts are distinct: the lowest ones left.
int64_t first_not_among(std::span<const int32_t> experts) {
    int32_t first = 0;
    while (std::ranges::find(experts, first) != experts.end()) ++first;
    return first;
}

void choose_experts(const GateRow& row, const GateParams& p, int32_t* experts, float* weights) {
    float sum = 0;
    for (int64_t k = 0; k < p.topk; ++k) {
        int64_t best = best_expert(row);
        if (best < 0) best = first_not_among({experts, static_cast<size_t>(k)});
        experts[k] = static_cast<int32_t>(best);
        weights[k] = row.scores[best];
        sum += weights[k];
        row.choice[best] = kNever;
    }
    for (int64_t k = 0; k < p.topk; ++k) {
        if (p.normalise) weights[k] /= sum + 1e-20f;
        weights[k] *= p.scaling_factor;
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(score_row);
HWY_EXPORT(choose_experts);

// Leaves the best groups' choices alone. A group counts by its highest choice, with a bias by the
// sum of its two highest.
void mask_groups(const GateRow& row, const GateParams& p, bool has_bias) {
    const int64_t size = row.num_experts / p.num_groups;
    for (int64_t g = 0; g < p.num_groups; ++g) {
        float first = kNever, second = kNever;
        for (const float* c = row.choice + g * size; c != row.choice + (g + 1) * size; ++c) {
            second = std::max(second, std::min(first, *c));
            first = std::max(first, *c);
        }
        row.group_scores[g] = has_bias && size > 1 ? first + second : first;
    }
    for (int64_t g = 0; g < p.num_groups; ++g) {
        int64_t better = 0;
        for (int64_t other = 0; other < p.num_groups; ++other)
            better += row.group_scores[other] > row.group_scores[g] ||
                      (row.group_scores[other] == row.group_scores[g] && other < g);
        if (better >= p.num_kept_groups) std::fill_n(row.choice + g * size, size, kNever);
    }
}

}  // namespace

void CpuKernels::gate(const Tensor& scores, const Tensor* bias, const GateParams& p,
                      const Tensor& experts, const Tensor& weights) {
    constexpr int64_t kRowsAtOnce = 8;
    const int64_t rows = scores.rows(), num_experts = scores.dim(1);
    check_shape(scores, "scores", DType::f32, {rows, num_experts});
    check_shape(experts, "experts", DType::i32, {rows, p.topk});
    check_shape(weights, "weights", DType::f32, {rows, p.topk});
    if (bias) check_shape(*bias, "bias", DType::f32, {num_experts});
    FERRY_CHECK(p.topk >= 1 && p.topk <= num_experts && num_experts % p.num_groups == 0,
                "top {} of {} experts in {} groups", p.topk, num_experts, p.num_groups);
    FERRY_CHECK(static_cast<size_t>(3 * num_experts + 2 * kPartialSums) * sizeof(float) <=
                    threads_.scratch_bytes(),
                "{} bytes of scratch for {} experts", threads_.scratch_bytes(), num_experts);
    const float* biases = bias ? bias->as<float>() : nullptr;
    const auto score = &HWY_DYNAMIC_DISPATCH(score_row);
    const auto choose = &HWY_DYNAMIC_DISPATCH(choose_experts);
    threads_.parallel_for(ceil_div(rows, kRowsAtOnce), [&](int64_t block, int thread) {
        const GateRow scratch(threads_.scratch(thread), num_experts);
        const int64_t end = std::min(rows, (block + 1) * kRowsAtOnce);
        for (int64_t row = block * kRowsAtOnce; row < end; ++row) {
            score(scratch, p.score_func, scores.row<float>(row), biases);
            if (p.num_groups > 1) mask_groups(scratch, p, biases != nullptr);
            choose(scratch, p, experts.row<int32_t>(row), weights.row<float>(row));
        }
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
