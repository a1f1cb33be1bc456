#include "runtime/trace_json.h"

#include <gtest/gtest.h>

#include "tests/support/trace_check.h"

namespace ferry {
namespace {

using testing::check_trace;
using testing::TraceCheck;

// Two ranks and one exchange of each of two micro-batches, told in nanoseconds.
struct Example {
    std::vector<TraceEvent> attention{
        {Zone::embed, -1, -1, 1000, 2000, 0}, {Zone::tensor_parallel, -1, -1, 1200, 1500, 0},
        {Zone::pack, 1, 0, 2000, 3000, 640},  {Zone::pack, 1, 1, 3000, 4000, 640},
        {Zone::combine, 1, 0, 9000, 9500, 0}, {Zone::combine, 1, 1, 9600, 9900, 0}};
    std::vector<TraceMark> attention_marks{
        {Station::dispatch, 0, 1, 7, 2100}, {Station::dispatched, 0, 1, 7, 2900},
        {Station::dispatch, 1, 1, 7, 3100}, {Station::dispatched, 1, 1, 7, 3900},
        {Station::combine, 0, 1, 7, 9100},  {Station::combine, 1, 1, 7, 9700}};
    std::vector<TraceEvent> expert{{Zone::pack, 1, 0, 4000, 5000, 0},
                                   {Zone::experts, 1, 0, 5000, 6000, 0},
                                   {Zone::pack, 1, 1, 6500, 7000, 0},
                                   {Zone::experts, 1, 1, 7000, 8000, 0}};
    std::vector<TraceMark> expert_marks{{Station::received, 0, 1, 7, 4100},
                                        {Station::replied, 0, 1, 7, 6200},
                                        {Station::received, 1, 1, 7, 6600},
                                        {Station::replied, 1, 1, 7, 8200}};
    std::vector<CounterSample> samples{{1000, 3, 0}, {30'000'000, 2, 60}};

    std::string text() const {
        const auto to_us = [](int64_t ns) { return static_cast<double>(ns) * 1e-3; };
        WholeExchanges whole = whole_exchanges(attention_marks, true, false, 0, INT64_MAX);
        const WholeExchanges other = whole_exchanges(expert_marks, false, true, 0, INT64_MAX);
        for (size_t m = 0; m < whole.first.size(); ++m) {
            whole.first[m] = std::max(whole.first[m], other.first[m]);
            whole.last[m] = std::min(whole.last[m], other.last[m]);
        }
        RankTrace first{.rank = 0,
                        .name = "rank 0 (attention) on a",
                        .attention_rank = 0,
                        .events = attention,
                        .marks = attention_marks,
                        .samples = samples,
                        .whole = whole,
                        .to_us = to_us};
        RankTrace second{.rank = 1,
                         .name = "rank 1 (expert) on b",
                         .expert_rank = 0,
                         .events = expert,
                         .marks = expert_marks,
                         .whole = whole,
                         .to_us = to_us};
        return R"({"displayTimeUnit":"ms","otherData":{"ranks":[)"
               R"({"rank":0,"host":"a","clock_drift_ppm":0,"clock_error_us":0,"dropped_events":0},)"
               R"({"rank":1,"host":"b","clock_drift_ppm":1,"clock_error_us":0.1,"dropped_events":0}]},)"
               "\n\"traceEvents\":[\n" +
               trace_events_json(first) + ",\n" + trace_events_json(second) + "\n]}\n";
    }
};

std::string all(const TraceCheck& check) {
    std::string text;
    for (const std::string& problem : check.problems) text += problem + "\n";
    return text;
}

TEST(TraceJson, HoldsSpansArrowsAndCounters) {
    const TraceCheck check = check_trace(Example().text());
    EXPECT_EQ(all(check), "");
    EXPECT_EQ(check.num_ranks, 2);
    EXPECT_EQ(check.num_spans, 6 + 2 + 4);  // and two exchanges in flight
    EXPECT_EQ(check.num_flows, 2);
    EXPECT_EQ(check.num_counters, 2 + 1);
}

TEST(TraceJson, ExchangesWithoutAnEndHaveNoArrow) {
    Example example;
    example.expert_marks.resize(2);  // the second micro-batch's rows did not come
    const TraceCheck check = check_trace(example.text());
    EXPECT_EQ(all(check), "");
    EXPECT_EQ(check.num_flows, 1);
}

TEST(TraceJson, WhatIsBeforeTheBeginIsLeftOut) {
    const Example example;
    const WholeExchanges whole =
        whole_exchanges(example.attention_marks, true, false, 3000, INT64_MAX);
    EXPECT_GT(whole.first[0], whole.last[0]);
    EXPECT_EQ(whole.first[1], 7);
    EXPECT_EQ(whole.last[1], 7);
}

// The check itself finds what it is there for.
TEST(TraceCheck, FindsWhatIsWrong) {
    const auto broken = [](const std::string& what, const std::string& by) {
        std::string text = Example().text();
        const size_t at = text.find(what);
        EXPECT_NE(at, std::string::npos) << what;
        text.replace(at, what.size(), by);
        return all(check_trace(text));
    };
    EXPECT_EQ(broken("\"ph\":\"X\"", "\"ph\":\"X\""), "");
    EXPECT_NE(broken("]}\n", "]"), "");
    EXPECT_NE(broken("\"ph\":\"X\"", "\"ph\":\"B\"").find("unknown kind"), std::string::npos);
    EXPECT_NE(broken("\"dur\":", "\"length\":").find("has keys"), std::string::npos);
    EXPECT_NE(broken("\"dur\":1.000", "\"dur\":-1.000").find("ends before"), std::string::npos);
    EXPECT_NE(broken("\"dur\":0.300", "\"dur\":1.300").find("overlaps"), std::string::npos);
    EXPECT_NE(broken("\"ph\":\"s\"", "\"bp\":\"e\",\"ph\":\"t\"").find("0 begins"),
              std::string::npos);
    EXPECT_NE(broken("\"ts\":4.100", "\"ts\":1.700").find("is not between"), std::string::npos);
    EXPECT_NE(broken("\"ts\":4.100", "\"ts\":6.300").find("lies in no span"), std::string::npos);
    EXPECT_NE(
        broken("\"ts\":30000.000,\"args\":{\"requests\"", "\"ts\":0.500,\"args\":{\"requests\"")
            .find("goes back"),
        std::string::npos);
    EXPECT_NE(broken("\"thread_name\",\"pid\":1,\"tid\":0", "\"thread_name\",\"pid\":1,\"tid\":5")
                  .find("has no name"),
              std::string::npos);
}

}  // namespace
}  // namespace ferry
