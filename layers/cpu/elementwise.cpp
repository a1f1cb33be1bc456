#include <cstring>

#include "comm/row_codec.h"
#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/row_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/elementwise.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

void add_row(const float* HWY_RESTRICT x, int64_t count, float* HWY_RESTRICT y) {
    const Floats d;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
    for (; i < count; ++i) y[i] += x[i];
}

void widen_row(const uint16_t* HWY_RESTRICT x, int64_t count, float* HWY_RESTRICT y) {
    const Floats d;
    const hn::RebindToUnsigned<Floats> du;
    const hn::Rebind<uint16_t, Floats> d16;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, x + i)))), d,
                   y + i);
    for (; i < count; ++i) y[i] = bf16_to_f32(x[i]);
}

HWY_INLINE FloatVector silu(FloatVector gate) {
    const Floats d;
    return hn::Div(gate, hn::Add(hn::Set(d, 1.0f), fast_exp(hn::Neg(gate))));
}

void silu_mul_row(const float* gate, const float* up, int64_t count, float* y) {
    const Floats d;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        hn::StoreU(hn::Mul(silu(hn::LoadU(d, gate + i)), hn::LoadU(d, up + i)), d, y + i);
    if (i == count) return;
    alignas(64) float last_gate[kLanes] = {}, last_up[kLanes] = {}, last[kLanes];
    std::copy(gate + i, gate + count, last_gate);
    std::copy(up + i, up + count, last_up);
    hn::Store(hn::Mul(silu(hn::Load(d, last_gate)), hn::Load(d, last_up)), d, last);
    std::copy_n(last, count - i, y + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(add_row);
HWY_EXPORT(widen_row);
HWY_EXPORT(silu_mul_row);

void CpuKernels::embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) {
    const int64_t rows = static_cast<int64_t>(tokens.size()), dim = table.dim(1);
    check_shape(y, "y", DType::f32, {rows, dim});
    FERRY_CHECK(table.dtype() == DType::f32 || table.dtype() == DType::bf16, "table {}",
                table.describe());
    for_row_ranges(threads_, rows, dim, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row) {
            const int32_t token = tokens[static_cast<size_t>(row)];
            FERRY_CHECK(token >= 0 && token < table.rows(), "token {} of {}", token, table.rows());
            if (table.dtype() == DType::f32)
                std::copy_n(table.row<float>(token), dim, y.row<float>(row));
            else
                HWY_DYNAMIC_DISPATCH(widen_row)
            (table.row<uint16_t>(token), dim, y.row<float>(row));
        }
    });
}

void CpuKernels::fill_zero(const Tensor& y) {
    FERRY_CHECK(y.contiguous(), "y is {}", y.describe());
    if (!y.empty())
        std::memset(y.data(), 0, static_cast<size_t>(y.count() * size_bytes(y.dtype())));
}

void CpuKernels::gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) {
    const auto num_rows = static_cast<int64_t>(rows.size());
    FERRY_CHECK(x.dtype() == DType::f32 && y.dtype() == DType::f32 && y.rows() == num_rows &&
                    x.row_size() == y.row_size(),
                "{} rows of x {} to y {}", num_rows, x.describe(), y.describe());
    for_row_ranges(threads_, num_rows, y.row_size(), [&](int64_t first, int64_t num) {
        for (int64_t i = first; i < first + num; ++i) {
            const int32_t row = rows[static_cast<size_t>(i)];
            FERRY_CHECK(row >= 0 && row < x.rows(), "row {} of {}", row, x.rows());
            std::copy_n(x.row<float>(row), y.row_size(), y.row<float>(i));
        }
    });
}

void CpuKernels::add(const Tensor& x, const Tensor& y) {
    FERRY_CHECK(x.dtype() == DType::f32 && y.dtype() == DType::f32 && x.rows() == y.rows() &&
                    x.row_size() == y.row_size(),
                "x {} and y {}", x.describe(), y.describe());
    for_row_ranges(threads_, x.rows(), x.row_size(), [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row)
            HWY_DYNAMIC_DISPATCH(add_row)(x.row<float>(row), x.row_size(), y.row<float>(row));
    });
}

void CpuKernels::copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) {
    const int64_t heads = x.dim(1), columns = y.dim(2);
    check_shape(y, "y", DType::f32, {x.rows(), heads, columns});
    FERRY_CHECK(x.dtype() == DType::f32 && first_column >= 0 && first_column + columns <= x.dim(2),
                "columns {}+{} of {}", first_column, columns, x.describe());
    for_row_ranges(threads_, x.rows(), heads * columns, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row)
            for (int64_t head = 0; head < heads; ++head)
                std::memcpy(y.row<float>(row) + head * columns,
                            x.row<float>(row) + head * x.dim(2) + first_column,
                            static_cast<size_t>(columns) * sizeof(float));
    });
}

void CpuKernels::silu_mul(const Tensor& gate_up, const Tensor& y, const int64_t* num_rows) {
    const int64_t inter = y.dim(1);
    check_shape(gate_up, "gate_up", DType::f32, {y.rows(), 2 * inter});
    const bool is_f32 = y.dtype() == DType::f32;
    check_shape(y, "y", is_f32 ? DType::f32 : row_dtype(DType::bf16, inter), {y.rows(), inter});
    const int64_t rows = num_rows != nullptr ? *num_rows : y.rows();
    for_row_ranges(threads_, rows, 4 * inter, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row) {
            const float* gate = gate_up.row<float>(row);
            if (is_f32) {
                HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, gate + inter, inter, y.row<float>(row));
                continue;
            }
            constexpr int64_t kAtOnce = 512;
            float values[kAtOnce];
            for (int64_t i = 0; i < inter; i += kAtOnce) {
                const int64_t count = std::min(kAtOnce, inter - i);
                HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate + i, gate + inter + i, count, values);
                encode_row(DType::bf16, values, count,
                           reinterpret_cast<std::byte*>(y.row<uint16_t>(row) + i), nullptr);
            }
        }
    });
}

void CpuKernels::round_rows(const Tensor& x, const Tensor& y, const int64_t* num_rows) {
    check_shape(x, "x", DType::f32, {y.rows(), y.dim(1)});
    check_shape(y, "y", DType::bf16, {y.rows(), y.dim(1)});
    const int64_t rows = num_rows != nullptr ? *num_rows : y.rows();
    for_row_ranges(threads_, rows, y.dim(1), [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row)
            encode_row(DType::bf16, x.row<float>(row), y.dim(1), y.row<std::byte>(row), nullptr);
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
