#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::rope(const Tensor& x, std::span<const int32_t> positions, const Tensor& table,
                      bool interleave) {
    const int64_t heads = x.dim(1), head_dim = x.dim(2), r = table.dim(1);
    for (int64_t row = 0; row < x.rows(); ++row) {
        const float* angles = table.row<float>(positions[static_cast<size_t>(row)]);
        for (int64_t head = 0; head < heads; ++head) {
            float* v = x.row<float>(row) + head * head_dim + head_dim - r;
            for (int64_t i = 0; i < r / 2; ++i) {
                const int64_t a = interleave ? 2 * i : i, b = interleave ? 2 * i + 1 : i + r / 2;
                const float cos = angles[2 * i], sin = angles[2 * i + 1];
                const float first = v[a] * cos - v[b] * sin;
                const float second = v[a] * sin + v[b] * cos;
                v[a] = first;
                v[b] = second;
            }
        }
    }
}

}  // namespace ferry
