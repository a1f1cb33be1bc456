#include "runtime/bench/latency.h"

#include <gmock/gmock.h>

namespace ferry {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

TEST(Percentile, NearestRank) {
    const std::vector<double> values{15, 20, 35, 40, 50};
    EXPECT_EQ(percentile(values, 0), 15);
    EXPECT_EQ(percentile(values, 0.05), 15);
    EXPECT_EQ(percentile(values, 0.30), 20);
    EXPECT_EQ(percentile(values, 0.40), 20);
    EXPECT_EQ(percentile(values, 0.50), 35);
    EXPECT_EQ(percentile(values, 0.99), 50);
    EXPECT_EQ(percentile(values, 1), 50);
    EXPECT_EQ(percentile({7}, 0.5), 7);
}

TEST(Percentile, DistributionOfOneToHundred) {
    std::vector<double> values;
    for (int i = 100; i >= 1; --i) values.push_back(i);
    const Distribution d = distribution_of(values);
    EXPECT_EQ(d.count, 100);
    EXPECT_EQ(d.mean, 50.5);
    EXPECT_EQ(d.min, 1);
    EXPECT_EQ(d.p50, 50);
    EXPECT_EQ(d.p90, 90);
    EXPECT_EQ(d.p99, 99);
    EXPECT_EQ(d.max, 100);
    EXPECT_EQ(distribution_of({}).count, 0);
}

// A clock that the test moves; times are powers of two in seconds, so that all sums are exact.
struct SimulatedClock {
    int64_t ns = 1'000'000'000;
    void pass(double seconds) { ns += static_cast<int64_t>(seconds * 1e9); }
};

TEST(LatencyLog, SimulatedClockGivesExactLatencies) {
    SimulatedClock clock;
    const std::vector<double> arrivals_s{0, 0.5, 0.25};
    LatencyLog log([&] { return clock.ns; }, arrivals_s, 8);
    log.start();
    clock.pass(1);
    log.token(0);  // at 1
    clock.pass(0.5);
    log.token(0);  // at 1.5
    log.token(1);  // its first, at 1.5
    clock.pass(0.25);
    log.token(0);  // at 1.75
    clock.pass(1);
    log.token(1);  // at 2.75
    EXPECT_EQ(log.now_s(), 2.75);

    EXPECT_THAT(log.between_tokens_s(), ElementsAre(0.5, 0.25, 1.25));
    const std::vector<RequestLatency> requests = log.requests();
    ASSERT_EQ(requests.size(), 2u);  // request 2 got nothing
    EXPECT_EQ(requests[0].index, 0);
    EXPECT_EQ(requests[0].num_tokens, 3);
    EXPECT_EQ(requests[0].ttft_s, 1);
    EXPECT_EQ(requests[0].tpot_s, 0.375);
    EXPECT_EQ(requests[0].total_s, 1.75);
    EXPECT_EQ(requests[1].ttft_s, 1);  // 1.5 - 0.5
    EXPECT_EQ(requests[1].tpot_s, 1.25);
    EXPECT_EQ(requests[1].total_s, 2.25);
}

TEST(LatencyLog, PercentilesOfManyRequestsAreExact) {
    SimulatedClock clock;
    const std::vector<double> arrivals_s(64, 0.0);
    LatencyLog log([&] { return clock.ns; }, arrivals_s, 64);
    log.start();
    for (int64_t i = 0; i < 64; ++i) {
        clock.pass(0.25);
        log.token(63 - i);
    }
    std::vector<double> ttft_s;
    for (const RequestLatency& request : log.requests()) ttft_s.push_back(request.ttft_s);
    const Distribution d = distribution_of(ttft_s);
    EXPECT_DOUBLE_EQ(d.mean, 0.25 * 65 / 2);
    EXPECT_DOUBLE_EQ(d.p50, 8);
    EXPECT_DOUBLE_EQ(d.p90, 14.5);  // the 58th of 64
    EXPECT_DOUBLE_EQ(d.p99, 16);
    EXPECT_EQ(log.requests()[0].tpot_s, 0);
}

}  // namespace
}  // namespace ferry
