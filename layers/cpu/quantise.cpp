#include <cmath>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                              const Tensor& scales) {
    const int64_t columns = x.dim(1);
    check_shape(scales, "scales", DType::f32, {x.rows(), ceil_div(columns, kScaleBlock)});
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t block = 0; block * kScaleBlock < columns; ++block) {
            const int64_t begin = block * kScaleBlock, end = std::min(columns, begin + kScaleBlock);
            float largest = 1e-4f;
            for (int64_t i = begin; i < end; ++i)
                largest = std::max(largest, std::abs(x.row<float>(row)[i]));
            float scale = largest / kFp8Max;
            if (power_of_two_scales) scale = std::exp2(std::ceil(std::log2(scale)));
            scales.row<float>(row)[block] = scale;
            for (int64_t i = begin; i < end; ++i)
                q.row<float>(row)[i] =
                    fp8_e4m3_to_f32(f32_to_fp8_e4m3(x.row<float>(row)[i] / scale));
        }
}

void CpuKernels::tree_sum(const Tensor& parts, const Tensor& y) {
    const int64_t n = parts.dim(0);
    const auto sum = [&](auto&& self, int64_t begin, int64_t end, int64_t i) -> float {
        if (end - begin == 1) return parts.row<float>(begin)[i];
        const int64_t middle = begin + (end - begin) / 2;
        return self(self, begin, middle, i) + self(self, middle, end, i);
    };
    const int64_t row_size = y.row_size();
    for (int64_t row = 0; row < y.rows(); ++row)
        for (int64_t i = 0; i < row_size; ++i)
            y.row<float>(row)[i] = sum(sum, 0, n, row * row_size + i);
}

}  // namespace ferry
