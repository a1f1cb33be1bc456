#include "base/error.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(Error, ExitCodesAreTheDocumentedOnes) {
    EXPECT_EQ(exit_code(ErrorKind::usage), 2);
    EXPECT_EQ(exit_code(ErrorKind::checkpoint), 3);
    EXPECT_EQ(exit_code(ErrorKind::input), 4);
    EXPECT_EQ(exit_code(ErrorKind::communication), 5);
    EXPECT_EQ(exit_code(ErrorKind::memory), 6);
    EXPECT_EQ(exit_code(ErrorKind::requeue), 75);
}

TEST(Error, FormatsItsMessageButNotBareText) {
    EXPECT_STREQ(Error(ErrorKind::input, "line {}: {}", 3, "bad").what(), "line 3: bad");
    EXPECT_STREQ(Error(ErrorKind::input, "a {} in text").what(), "a {} in text");
}

}  // namespace
}  // namespace ferry
