#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "layers/kernels.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_attention.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

constexpr int64_t kColumns[] = {1, 7, 8, 16, 33, 200};

TEST(Elementwise, AddHasTheBitsOfOneAddition) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        for (int64_t columns : kColumns) {
            const Matrix x(5, columns, 1);
            Matrix y(5, columns, 2), expected(5, columns, 2);
            for (size_t i = 0; i < x.values.size(); ++i) expected.values[i] += x.values[i];
            kernels->add(x.view, y.view);
            EXPECT_EQ(num_different(y, expected), 0) << columns;
        }
    });
}

TEST(Elementwise, AddOfManyRowsIsSharedOut) {
    const auto kernels = make_cpu_kernels(3);
    const Matrix x(70, 3000, 1);
    Matrix y(70, 3000, 2), expected(70, 3000, 2);
    for (size_t i = 0; i < x.values.size(); ++i) expected.values[i] += x.values[i];
    kernels->add(x.view, y.view);
    EXPECT_EQ(num_different(y, expected), 0);
}

TEST(Elementwise, SiluMul) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(1);
        for (int64_t inter : kColumns) {
            Matrix gate_up(3, 2 * inter, 3);
            for (float& value : gate_up.values) value *= 4;
            Matrix y(3, inter), expected(3, inter);
            for (int64_t row = 0; row < 3; ++row)
                for (int64_t i = 0; i < inter; ++i) {
                    const float gate = gate_up.view.row<float>(row)[i];
                    expected.view.row<float>(row)[i] =
                        gate / (1 + reference_exp(-gate)) * gate_up.view.row<float>(row)[inter + i];
                }
            kernels->silu_mul(gate_up.view, y.view);
            EXPECT_EQ(num_different(y, expected), 0) << inter;
        }
    });
}

// To bf16 on the way: the bits of doing one after the other.
TEST(Elementwise, SiluMulMayRound) {
    const auto kernels = make_cpu_kernels(2, {.bf16_activations = true});
    for (int64_t inter : {2, 18, 512, 1100}) {
        const Matrix gate_up(5, 2 * inter, 4);
        Matrix y(5, inter);
        std::vector<uint16_t> rounded(static_cast<size_t>(5 * inter));
        kernels->silu_mul(gate_up.view, y.view);
        kernels->silu_mul(gate_up.view, Tensor(rounded.data(), DType::bf16, {5, inter}));
        for (size_t i = 0; i < rounded.size(); ++i)
            EXPECT_EQ(rounded[i], f32_to_bf16(y.values[i])) << inter << ", " << i;
    }
}

TEST(Elementwise, SiluByHandAndAtTheEnds) {
    const float infinity = std::numeric_limits<float>::infinity();
    float gate_up[] = {0, 1, -1, 100, -100, infinity, 2, 2, 2, 2, 2, 2}, y[6];
    make_cpu_kernels(1)->silu_mul(Tensor(gate_up, DType::f32, {1, 12}),
                                  Tensor(y, DType::f32, {1, 6}));
    EXPECT_EQ(y[0], 0);
    EXPECT_NEAR(y[1], 2 * 0.7310585786, 1e-6);
    EXPECT_NEAR(y[2], -2 * 0.2689414214, 1e-6);
    EXPECT_EQ(y[3], 200);
    EXPECT_EQ(y[4], 0);
    EXPECT_EQ(y[5], infinity);
}

TEST(Elementwise, EmbedTakesRowsOfTheTable) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(2);
        const std::vector<int32_t> tokens = {4, 0, 4, 9};
        const Matrix table(10, 37, 5);
        std::vector<uint16_t> rounded;
        for (float value : table.values) rounded.push_back(f32_to_bf16(value));
        Matrix y(4, 37), y_bf16(4, 37);
        kernels->embed(tokens, table.view, y.view);
        kernels->embed(tokens, Tensor(rounded.data(), DType::bf16, {10, 37}), y_bf16.view);
        for (int64_t row = 0; row < 4; ++row)
            for (int64_t i = 0; i < 37; ++i) {
                const float value = table.view.row<float>(tokens[static_cast<size_t>(row)])[i];
                EXPECT_EQ(y.view.row<float>(row)[i], value);
                EXPECT_EQ(y_bf16.view.row<float>(row)[i], bf16_to_f32(f32_to_bf16(value)));
            }
    });
}

TEST(Elementwise, GatherRows) {
    const Matrix x(6, 2 * 5, 3);
    const std::vector<int32_t> rows{5, 0, 5};
    Matrix y(3, 2 * 5);
    make_cpu_kernels(2)->gather_rows(x.view.reshape({6, 2, 5}), rows, y.view.reshape({3, 2, 5}));
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < 10; ++j)
            EXPECT_EQ(y.view.row<float>(i)[j], x.view.row<float>(rows[static_cast<size_t>(i)])[j]);
    make_cpu_kernels(1)->gather_rows(x.view, {}, y.view.slice_rows(0, 0));
    const std::vector<int32_t> beyond{6};
    EXPECT_DEATH(make_cpu_kernels(1)->gather_rows(x.view, beyond, y.view.slice_rows(0, 1)),
                 "row 6 of 6");
}

TEST(Elementwise, FillZero) {
    Matrix y(3, 5, 1);
    const Matrix before(3, 5, 1);
    make_cpu_kernels(1)->fill_zero(y.view.slice_rows(1, 1));
    for (size_t i = 0; i < y.values.size(); ++i)
        EXPECT_EQ(y.values[i], i / 5 == 1 ? 0 : before.values[i]) << i;
}

TEST(Elementwise, CopyHeadColumns) {
    const Matrix x(3, 2 * 10, 6);
    Matrix y(3, 2 * 4);
    make_cpu_kernels(1)->copy_head_columns(x.view.reshape({3, 2, 10}), 6,
                                           y.view.reshape({3, 2, 4}));
    for (int64_t row = 0; row < 3; ++row)
        for (int64_t head = 0; head < 2; ++head)
            for (int64_t i = 0; i < 4; ++i)
                EXPECT_EQ(y.view.row<float>(row)[head * 4 + i],
                          x.view.row<float>(row)[head * 10 + 6 + i]);
}

}  // namespace
}  // namespace ferry
