#include <cmath>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
    const int64_t dim = x.dim(1);
    check_shape(weight, "weight", DType::f32, {dim});
    for (int64_t row = 0; row < x.rows(); ++row) {
        const float* in = x.row<float>(row);
        float sums[16] = {};
        for (int64_t i = 0; i < dim; ++i) sums[i % 16] = std::fma(in[i], in[i], sums[i % 16]);
        for (int width = 8; width >= 1; width /= 2)
            for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
        const float scale = 1 / std::sqrt(sums[0] / static_cast<float>(dim) + eps);
        for (int64_t i = 0; i < dim; ++i)
            y.row<float>(row)[i] = in[i] * scale * weight.as<float>()[i];
    }
}

}  // namespace ferry
