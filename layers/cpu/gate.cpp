#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::gate(const Tensor& scores, const Tensor* bias, const GateParams& p,
                      const Tensor& experts, const Tensor& weights) {
    const int64_t n = scores.dim(1), group_size = n / p.num_groups;
    check_shape(experts, "experts", DType::i32, {scores.rows(), p.topk});
    check_shape(weights, "weights", DType::f32, {scores.rows(), p.topk});
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    std::vector<float> s(n), choice(n);
    std::vector<float> group_score(p.num_groups);
    for (int64_t row = 0; row < scores.rows(); ++row) {
        const float* x = scores.row<float>(row);
        if (p.score_func == ScoreFunc::sigmoid) {
            for (int64_t i = 0; i < n; ++i) s[i] = 1 / (1 + std::exp(-x[i]));
        } else {
            const float maximum = *std::max_element(x, x + n);
            float sum = 0;
            for (int64_t i = 0; i < n; ++i) sum += s[i] = std::exp(x[i] - maximum);
            for (int64_t i = 0; i < n; ++i) s[i] /= sum;
        }
        for (int64_t i = 0; i < n; ++i) choice[i] = s[i] + (bias ? bias->as<float>()[i] : 0.0f);
        if (p.num_groups > 1) {
            for (int64_t g = 0; g < p.num_groups; ++g) {
                float first = kNever, second = kNever;
                for (int64_t i = g * group_size; i < (g + 1) * group_size; ++i) {
                    if (choice[i] > first) {
                        second = first;
                        first = choice[i];
                    } else if (choice[i] > second) {
                        second = choice[i];
                    }
                }
                group_score[g] = bias && group_size > 1 ? first + second : first;
            }
            for (int64_t g = 0; g < p.num_groups; ++g) {
                int64_t better = 0;
                for (int64_t other = 0; other < p.num_groups; ++other)
                    better += group_score[other] > group_score[g] ||
                              (group_score[other] == group_score[g] && other < g);
                if (better >= p.num_kept_groups)
                    std::fill_n(choice.begin() + g * group_size, group_size, kNever);
            }
        }
        float sum = 0;
        for (int64_t k = 0; k < p.topk; ++k) {
            const int64_t best = std::max_element(choice.begin(), choice.end()) - choice.begin();
            experts.row<int32_t>(row)[k] = static_cast<int32_t>(best);
            weights.row<float>(row)[k] = s[best];
            sum += s[best];
            choice[best] = kNever;
        }
        for (int64_t k = 0; k < p.topk; ++k) {
            float& weight = weights.row<float>(row)[k];
            if (p.normalise) weight /= sum + 1e-20f;
            weight *= p.scaling_factor;
        }
    }
}

}  // namespace ferry
