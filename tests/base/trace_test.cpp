#include "base/trace.h"

#include <gtest/gtest.h>

#include <set>

namespace ferry {
namespace {

TEST(Trace, AddsUpTotalsAndKeepsBoundedEvents) {
    Trace trace;
    trace.record_events(2);
    for (int i = 0; i < 3; ++i) trace.add({Zone::gate, 1, 0, 10 * i, 10 * i + 4, 100}, 7);
    const ZoneTotals& total = trace.totals()[static_cast<size_t>(Zone::gate)];
    EXPECT_EQ(total.count, 3);
    EXPECT_EQ(total.time_ns, 12);
    EXPECT_EQ(total.bytes, 300);
    EXPECT_EQ(total.flops, 21);
    EXPECT_EQ(trace.events().size(), 2u);
    EXPECT_EQ(trace.dropped_events(), 1);
}

TEST(Trace, TimesWithoutZonesInsideAddUp) {
    trace().reset_totals();
    const auto total = [](Zone zone) { return trace().totals()[static_cast<size_t>(zone)]; };
    {
        ScopedZone outer(Zone::dense);
        for (int i = 0; i < 2; ++i) {
            ScopedZone inner(Zone::tensor_parallel);
            const int64_t begin_ns = trace_now_ns();
            while (trace_now_ns() - begin_ns < 200'000) continue;
            trace().add({Zone::combine_wait, -1, -1, begin_ns, begin_ns + 50'000, 0}, 0);
        }
    }
    EXPECT_GE(total(Zone::dense).time_ns, total(Zone::tensor_parallel).time_ns);
    EXPECT_EQ(total(Zone::dense).self_ns,
              total(Zone::dense).time_ns - total(Zone::tensor_parallel).time_ns);
    EXPECT_EQ(total(Zone::tensor_parallel).self_ns, total(Zone::tensor_parallel).time_ns - 100'000);
    EXPECT_EQ(total(Zone::combine_wait).self_ns, 100'000);
    EXPECT_EQ(total(Zone::dense).self_ns + total(Zone::tensor_parallel).self_ns +
                  total(Zone::combine_wait).self_ns,
              total(Zone::dense).time_ns);
}

TEST(Trace, EveryZoneHasItsOwnName) {
    std::set<std::string_view> names;
    for (int i = 0; i < kNumZones; ++i) names.insert(to_string(static_cast<Zone>(i)));
    EXPECT_EQ(names.size(), static_cast<size_t>(kNumZones));
    EXPECT_FALSE(names.contains("?"));
}

}  // namespace
}  // namespace ferry
