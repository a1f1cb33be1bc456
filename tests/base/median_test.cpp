#include "base/median.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(Median, OfOddAndEvenNumbers) {
    EXPECT_EQ(median({}), 0);
    EXPECT_EQ(median({7}), 7);
    EXPECT_EQ(median({9, 1}), 5);
    EXPECT_EQ(median({5, 1, 3}), 3);
    EXPECT_EQ(median({4, 1, 2, 100}), 3);
}

}  // namespace
}  // namespace ferry
