#include "layers/cuda/geometry.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(CudaGeometry, ElementwiseCoversAllColumnsAndRows) {
    EXPECT_EQ(elementwise_shape(3, 1792), (LaunchShape{.grid = {7, 3, 1}, .block = {256, 1, 1}}));
    EXPECT_EQ(elementwise_shape(1, 16), (LaunchShape{.grid = {1, 1, 1}, .block = {32, 1, 1}}));
    EXPECT_EQ(elementwise_shape(1, 257), (LaunchShape{.grid = {2, 1, 1}, .block = {256, 1, 1}}));
    EXPECT_EQ(elementwise_shape(100000, 8).grid.y, kMaxGridYZ);
}

TEST(CudaGeometry, ARowsThreadsDependOnItsLengthOnly) {
    EXPECT_EQ(row_shape(1, 7168),
              (LaunchShape{.grid = {1, 1, 1}, .block = {512, 1, 1}, .shared_bytes = 28672}));
    EXPECT_EQ(row_shape(500, 512),
              (LaunchShape{.grid = {500, 1, 1}, .block = {64, 1, 1}, .shared_bytes = 2048}));
    EXPECT_EQ(row_shape(1, 1).block.x, 64u);
    EXPECT_EQ(row_shape(1, 2048).block.x, 256u);
    for (int64_t dim = 1; dim < 20000; dim += 37) {
        EXPECT_EQ(row_shape(1, dim).block, row_shape(4096, dim).block);
        EXPECT_EQ(row_shape(1, dim).block.x % kWarpThreads, 0u);
    }
}

TEST(CudaGeometry, QuantiseGivesEveryBlockAWarp) {
    EXPECT_EQ(quantise_shape(1, 7168), (LaunchShape{.grid = {7, 1, 1}, .block = {256, 1, 1}}));
    EXPECT_EQ(quantise_shape(3, 129), (LaunchShape{.grid = {1, 1, 1}, .block = {256, 1, 1}}));
    EXPECT_EQ(quantise_shape(4096, 7168).grid.x, 4096u * 56 / 8);
}

TEST(CudaGeometry, TheGateSpreadsFewRowsOverMultiprocessors) {
    EXPECT_EQ(gate_shape(8, 256, 8),
              (LaunchShape{.grid = {8, 1, 1}, .block = {32, 1, 1}, .shared_bytes = 2080}));
    EXPECT_EQ(gate_shape(513, 256, 8),
              (LaunchShape{.grid = {129, 1, 1}, .block = {128, 1, 1}, .shared_bytes = 8320}));
    EXPECT_LE(gate_shape(600, 5000, 1).shared_bytes, size_t{48} << 10);  // fewer rows to a block
}

}  // namespace
}  // namespace ferry
