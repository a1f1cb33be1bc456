#include <cmath>
#include <cstring>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) {
    check_shape(y, "y", DType::f32, {static_cast<int64_t>(tokens.size()), table.dim(1)});
    for (size_t row = 0; row < tokens.size(); ++row)
        for (int64_t i = 0; i < table.dim(1); ++i)
            y.row<float>(static_cast<int64_t>(row))[i] =
                table.dtype() == DType::f32 ? table.row<float>(tokens[row])[i]
                                            : bf16_to_f32(table.row<uint16_t>(tokens[row])[i]);
}

void CpuKernels::add(const Tensor& x, const Tensor& y) {
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t i = 0; i < x.row_size(); ++i) y.row<float>(row)[i] += x.row<float>(row)[i];
}

void CpuKernels::copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) {
    const int64_t heads = x.dim(1), columns = y.dim(2);
    check_shape(y, "y", DType::f32, {x.rows(), heads, columns});
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t head = 0; head < heads; ++head)
            std::memcpy(y.row<float>(row) + head * columns,
                        x.row<float>(row) + head * x.dim(2) + first_column,
                        static_cast<size_t>(columns) * sizeof(float));
}

void CpuKernels::silu_mul(const Tensor& gate_up, const Tensor& y) {
    const int64_t inter = y.dim(1);
    check_shape(gate_up, "gate_up", DType::f32, {y.rows(), 2 * inter});
    for (int64_t row = 0; row < y.rows(); ++row)
        for (int64_t i = 0; i < inter; ++i) {
            const float gate = gate_up.row<float>(row)[i];
            y.row<float>(row)[i] =
                gate / (1 + std::exp(-gate)) * gate_up.row<float>(row)[inter + i];
        }
}

}  // namespace ferry
