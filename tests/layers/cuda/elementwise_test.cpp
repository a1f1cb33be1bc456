#include <algorithm>
#include <numeric>

#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

std::vector<uint16_t> random_bf16(size_t count) {
    Random numbers(7);
    std::vector<uint16_t> values(count);
    for (uint16_t& value : values) value = f32_to_bf16(numbers.next_normal());
    return values;
}

TEST(CudaElementwise, Add) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t rows : {0, 1, 3, 300})
        for (int64_t columns : {1, 7, 32, 1028}) {
            SCOPED_TRACE(fmt::format("{} x {}", rows, columns));
            const Matrix x(rows, columns, 1);
            Matrix y(rows, columns, 2);
            const CudaTensor x_device(x), y_device(y);
            cpu->add(x.view, y.view);
            cuda_kernels().add(x_device, y_device);
            expect_same_bits(y_device.values(), y.values);
        }
}

TEST(CudaElementwise, MoreRowsThanAGridHas) {
    const auto cpu = make_cpu_kernels(1);
    const int64_t rows = 70000;
    const Matrix x(rows, 1, 1);
    Matrix y(rows, 1, 2);
    const CudaTensor x_device(x), y_device(y);
    cpu->add(x.view, y.view);
    cuda_kernels().add(x_device, y_device);
    expect_same_bits(y_device.values(), y.values);
}

TEST(CudaElementwise, SiluMul) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t rows : {0, 1, 3})
        for (int64_t inter : {1, 30, 512}) {
            SCOPED_TRACE(fmt::format("{} x {}", rows, inter));
            Matrix gate_up(rows, 2 * inter, 3), y(rows, inter);
            if (rows > 0) gate_up.values[0] = 100, gate_up.values.back() = -100;
            cpu->silu_mul(gate_up.view, y.view);
            const CudaTensor from(gate_up), to(DType::f32, {rows, inter});
            cuda_kernels().silu_mul(from, to);
            expect_same_bits(to.values(), y.values);
        }
}

TEST(CudaElementwise, SiluMulOfLeadingRowsOnly) {
    const Buffer num_rows(cuda_device(0), sizeof(int64_t));
    for (const int64_t used : {0, 1, 3}) {
        cuda_device(0).copy_from_host(num_rows.data(), &used, sizeof(used));
        const CudaTensor from(Matrix(4, 2 * 30, 3)), all(DType::f32, {4, 30});
        const CudaTensor to(DType::f32, {4, 30});
        cuda_kernels().silu_mul(from, all);
        cuda_kernels().silu_mul(from, to, num_rows.as<int64_t>());
        std::vector<float> expected = all.values(), got = to.values();
        const auto first_unused = used * 30;
        for (auto i = got.begin() + first_unused; i != got.end(); ++i) EXPECT_TRUE(std::isnan(*i));
        got.resize(static_cast<size_t>(first_unused));
        expected.resize(got.size());
        expect_same_bits(got, expected);
    }
}

TEST(CudaElementwise, EmbedAndGather) {
    const auto cpu = make_cpu_kernels(1);
    const std::vector<int32_t> tokens{4, 0, 9, 9, 1};
    for (int64_t dim : {1, 30, 512}) {
        const Matrix table(10, dim, 1);
        const std::vector<uint16_t> half = random_bf16(static_cast<size_t>(10 * dim));
        const Tensor half_table(half.data(), DType::bf16, {10, dim});
        for (const Tensor& each : {table.view, half_table})
            for (size_t num : {size_t{0}, size_t{1}, tokens.size()}) {
                SCOPED_TRACE(fmt::format("{} rows of {}", num, each.describe()));
                const auto rows = static_cast<int64_t>(num);
                Matrix y(rows, dim);
                const CudaTensor table_device(each), y_device(DType::f32, {rows, dim});
                cpu->embed({tokens.data(), num}, each, y.view);
                cuda_kernels().embed({tokens.data(), num}, table_device, y_device);
                expect_same_bits(y_device.values(), y.values);
            }
        Matrix y(5, dim);
        const CudaTensor x_device(table), y_device(DType::f32, {5, dim});
        cpu->gather_rows(table.view, tokens, y.view);
        cuda_kernels().gather_rows(x_device, tokens, y_device);
        expect_same_bits(y_device.values(), y.values);
    }
}

TEST(CudaElementwise, CopyHeadColumns) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t first : {0, 3, 32}) {
        const Matrix x(5, 3 * 48, 1);
        Matrix y(5, 3 * 16);
        const CudaTensor x_device(x), y_device(DType::f32, {5, 3, 16});
        cpu->copy_head_columns(x.view.reshape({5, 3, 48}), first, y.view.reshape({5, 3, 16}));
        cuda_kernels().copy_head_columns(x_device.view().reshape({5, 3, 48}), first, y_device);
        expect_same_bits(y_device.values(), y.values);
        const CudaTensor rounded(DType::bf16, {5, 3, 16});
        cuda_kernels().copy_head_columns(x_device.view().reshape({5, 3, 48}), first, rounded);
        std::vector<uint16_t> bits(y.values.size());
        std::ranges::transform(y.values, bits.begin(), f32_to_bf16);
        EXPECT_EQ(rounded.values<uint16_t>(), bits);
    }
}

TEST(CudaElementwise, TreeSum) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t num : {1, 2, 3, 4, 5, 7, 8, 12, 16, 37})
        for (int64_t rows : {0, 1, 3}) {
            SCOPED_TRACE(fmt::format("{} parts of {} rows", num, rows));
            const Matrix parts(num * rows, 20, 1);
            Matrix y(rows, 20);
            cpu->tree_sum(parts.view.reshape({num, rows, 20}), y.view);
            const CudaTensor from(parts.view.reshape({num, rows, 20})), to(DType::f32, {rows, 20});
            cuda_kernels().tree_sum(from, to);
            expect_same_bits(to.values(), y.values);
        }
}

TEST(CudaElementwise, FillZero) {
    const CudaTensor y(DType::f32, {3, 5});
    cuda_kernels().fill_zero(y.view().slice_rows(1, 1));
    const std::vector<float> values = y.values();
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i] == 0, i / 5 == 1) << i;
}

TEST(CudaElementwise, RefusesWrongShapes) {
    const CudaTensor x(DType::f32, {2, 4}), y(DType::f32, {2, 5});
    EXPECT_DEATH(cuda_kernels().add(x, y), R"(x is \[2, 4\] f32, expected 2 rows of 5)");
    const std::vector<int32_t> tokens{0, 2};
    EXPECT_DEATH(cuda_kernels().embed(tokens, y, y), "token 2 of 2");
}

}  // namespace
}  // namespace ferry
