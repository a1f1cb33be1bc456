#include "base/tensor.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry {
namespace {

TEST(Tensor, SlicesKeepTheRowStride) {
    std::vector<float> values(12);
    for (int i = 0; i < 12; ++i) values[i] = static_cast<float>(i);
    const Tensor x(values.data(), DType::f32, {3, 4});
    const Tensor columns = x.slice_columns(1, 2);
    EXPECT_EQ(columns.row<float>(2)[0], 9);
    EXPECT_FALSE(columns.contiguous());
    const Tensor row = columns.slice_rows(1, 2);
    EXPECT_EQ(row.row<float>(0)[1], 6);
    EXPECT_EQ(row.count(), 4);
    EXPECT_EQ(columns.reshape({3, 2, 1}).row<float>(1)[0], 5);
}

TEST(Tensor, DescribesItself) {
    EXPECT_EQ(Tensor(nullptr, DType::bf16, {2, 3, 4}).describe(), "[2, 3, 4] bf16");
}

TEST(TensorDeathTest, WrongShapesDieWithBothShapes) {
    const Tensor x(nullptr, DType::f32, {2, 3});
    EXPECT_DEATH(check_shape(x, "x", DType::f32, {2, 4}),
                 "x is \\[2, 3\\] f32, expected \\[2, 4\\] f32");
    EXPECT_DEATH(x.slice_rows(1, 2), "rows 1\\+2");
}

}  // namespace
}  // namespace ferry
