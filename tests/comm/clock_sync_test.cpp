#include "comm/clock_sync.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "comm/world.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

int64_t steady_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// All ranks of this test are on one host, whose clock they share: what is added to it is known.
TEST(ClockSync, FindsOffsetsWithinHalfARoundTrip) {
    World& world = test_world();
    for (const int64_t step_ns : {int64_t{0}, int64_t{1'500'000'000}, int64_t{-777'777'777}}) {
        const int64_t truth = step_ns * world.rank();
        const ClockOffset offset = measure_clock_offset(world, [&] { return steady_ns() + truth; });
        EXPECT_LE(std::llabs(offset.offset_ns - truth), offset.round_trip_ns / 2 + 1);
        EXPECT_LE(std::llabs(offset.at_ns - truth - steady_ns()), int64_t{60'000'000'000});
        if (world.rank() > 0) {
            EXPECT_GT(offset.round_trip_ns, 0);
        }
    }
}

TEST(ClockSync, DriftIsALineThroughTwoOffsets) {
    // 1 s ahead at the begin, 20 us more after 2 s: 10 us per second.
    const ClockMap map({.at_ns = 5'000'000'000, .offset_ns = 1'000'000'000, .round_trip_ns = 4000},
                       {.at_ns = 7'000'000'000, .offset_ns = 1'000'020'000, .round_trip_ns = 6000});
    EXPECT_NEAR(map.drift(), 1e-5, 1e-12);
    EXPECT_EQ(map.to_rank_0(5'000'000'000), 4'000'000'000);
    EXPECT_EQ(map.to_rank_0(6'000'000'000), 4'999'990'000);
    EXPECT_EQ(map.to_rank_0(7'000'000'000), 5'999'980'000);
    EXPECT_EQ(map.error_ns(), 3000);
    // Too near each other to say anything of drift.
    const ClockMap near({.at_ns = 1000, .offset_ns = 10}, {.at_ns = 2000, .offset_ns = 500});
    EXPECT_EQ(near.drift(), 0);
    EXPECT_EQ(near.to_rank_0(2000), 1990);
}

}  // namespace
}  // namespace ferry
