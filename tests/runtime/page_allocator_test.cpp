#include "runtime/page_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "layers/kernels.h"

namespace ferry {
namespace {

std::vector<int32_t> page_tokens(int32_t first) {
    std::vector<int32_t> tokens(kPageTokens);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
}

TEST(PageAllocator, HandsOutEachPageOnceAndTakesItBack) {
    PageAllocator pages(3, false);
    EXPECT_EQ(pages.allocate(), 0);
    EXPECT_EQ(pages.allocate(), 1);
    EXPECT_EQ(pages.allocate(), 2);
    EXPECT_EQ(pages.allocate(), -1);
    pages.release(1);
    EXPECT_EQ(pages.num_available(), 1);
    EXPECT_EQ(pages.allocate(), 1);
    EXPECT_EQ(pages.num_held(), 3);
}

TEST(PageAllocator, FindsAPublishedPageByItsWholePrefix) {
    PageAllocator pages(4, true);
    const int32_t first = pages.allocate(), second = pages.allocate();
    const int64_t node = pages.publish(first, 0, page_tokens(0));
    pages.publish(second, node, page_tokens(100));
    EXPECT_EQ(pages.find(0, page_tokens(0)), first);
    EXPECT_EQ(pages.find(node, page_tokens(100)), second);
    EXPECT_EQ(pages.find(0, page_tokens(100)), -1);  // the same tokens after another prefix
    EXPECT_EQ(pages.num_found(), 2);
}

TEST(PageAllocator, KeptPagesAreFoundUntilTheirMemoryIsNeeded) {
    PageAllocator pages(2, true);
    const int32_t a = pages.allocate(), b = pages.allocate();
    pages.publish(a, 0, page_tokens(0));
    pages.publish(b, 0, page_tokens(500));
    pages.release(a);  // least recently used
    pages.release(b);
    EXPECT_EQ(pages.num_available(), 2);
    EXPECT_EQ(pages.allocate(), a);
    EXPECT_EQ(pages.find(0, page_tokens(0)), -1);
    EXPECT_EQ(pages.find(0, page_tokens(500)), b);
    EXPECT_EQ(pages.allocate(), -1);
}

TEST(PageAllocator, EqualPagesKeepTheFirst) {
    PageAllocator pages(2, true);
    const int32_t a = pages.allocate(), b = pages.allocate();
    const int64_t node = pages.publish(a, 0, page_tokens(7));
    EXPECT_EQ(pages.publish(b, 0, page_tokens(7)), node);
    pages.release(b);
    EXPECT_EQ(pages.allocate(), b);  // never published: free at once
}

TEST(PageAllocator, SharingSwitchedOffFindsNothing) {
    PageAllocator pages(2, false);
    pages.publish(pages.allocate(), 0, page_tokens(0));
    EXPECT_EQ(pages.find(0, page_tokens(0)), -1);
}

TEST(PageAllocatorDeathTest, ReleasingTwiceDies) {
    PageAllocator pages(1, false);
    pages.release(pages.allocate());
    // No regular expression: Oniguruma's regcomp hides the C library's, whose regexec ASan calls.
    EXPECT_DEATH(pages.release(0), ::testing::HasSubstr("released too often"));
}

}  // namespace
}  // namespace ferry
