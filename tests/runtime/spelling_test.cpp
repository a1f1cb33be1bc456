#include "runtime/spelling.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry {
namespace {

TEST(EditDistance, CountsEdits) {
    EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
    EXPECT_EQ(edit_distance("", "abc"), 3u);
    EXPECT_EQ(edit_distance("abc", ""), 3u);
    EXPECT_EQ(edit_distance("abc", "abc"), 0u);
    EXPECT_EQ(edit_distance("abcd", "acbd"), 1u);  // neighbours swapped
    EXPECT_EQ(edit_distance("ca", "abc"), 3u);     // no edit within a swapped pair
}

TEST(NearestSpelling, OnlyWhatIsNear) {
    const std::vector<std::string> words = {"threads", "max_batch", "n", "seed"};
    EXPECT_EQ(nearest_spelling("thread", words), "threads");
    EXPECT_EQ(nearest_spelling("max_bacth", words), "max_batch");
    EXPECT_EQ(nearest_spelling("colour", words), "");
    EXPECT_EQ(nearest_spelling("x", words), "");  // replacing all of "n" is no spelling of it
    EXPECT_EQ(nearest_spelling(std::string(100000, 't'), words), "");
}

}  // namespace
}  // namespace ferry
