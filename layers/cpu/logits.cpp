#include <algorithm>
#include <cmath>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::log_sum_exp(const Tensor& logits, const Tensor& lse, std::span<int32_t> argmax) {
    const int64_t vocab = logits.dim(1);
    for (int64_t row = 0; row < logits.rows(); ++row) {
        const float* x = logits.row<float>(row);
        const float* best = std::max_element(x, x + vocab);
        argmax[static_cast<size_t>(row)] = static_cast<int32_t>(best - x);
        float sum = 0;
        for (int64_t i = 0; i < vocab; ++i) sum += std::exp(x[i] - *best);
        lse.as<float>()[row] = *best + std::log(sum);
    }
}

}  // namespace ferry
