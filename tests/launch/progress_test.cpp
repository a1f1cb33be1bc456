#include "launch/progress.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(Progress, LineWithEverything) {
    const ProgressCounts counts{.done = 12, .failed = 1, .running = 3, .tokens = 2453};
    // 10 requests in 10 s leave 88 s for the other 88.
    EXPECT_EQ(progress_line(counts, 100, 2, 10),
              "12/100 requests, 3 running, 1 failed, 245.3 tokens/s, ETA 1:28");
}

TEST(Progress, LineWithoutATotalOrBeforeTheFirstRequest) {
    EXPECT_EQ(progress_line({.done = 5, .tokens = 30}, 0, 0, 2), "5 requests, 15.0 tokens/s");
    EXPECT_EQ(progress_line({.running = 2, .tokens = 8}, 7, 0, 4),
              "0/7 requests, 2 running, 2.0 tokens/s");
    EXPECT_EQ(progress_line({.done = 7}, 7, 7, 0), "7/7 requests");
    EXPECT_EQ(progress_line({.done = 9}, 7, 0, 0), "9/9 requests");
}

TEST(Progress, Durations) {
    EXPECT_EQ(format_duration(0.4), "0:00");
    EXPECT_EQ(format_duration(65), "1:05");
    EXPECT_EQ(format_duration(3599.6), "1:00:00");
    EXPECT_EQ(format_duration(7384), "2:03:04");
    EXPECT_EQ(format_duration(3 * 86400 + 2 * 3600), "3 d 02:00");
}

}  // namespace
}  // namespace ferry
