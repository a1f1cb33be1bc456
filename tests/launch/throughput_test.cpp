// Whole measurements of the demo model on one to four ranks: phases add up to the wall time, counts
// and outputs are right, layouts follow one another within a job.
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "launch/throughput_run.h"
#include "tests/support/expect_error.h"
#include "tests/support/mpi_main.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using Json = nlohmann::json;

struct Bench {
    explicit Bench(const std::vector<std::string>& overrides = {})
        : config(load_config("",
                             [&] {
                                 std::vector<std::string> all{
                                     "model.path=" FERRY_SOURCE_DIR "/configs/demo",
                                     "engine.threads=1", "engine.max_batch=4",
                                     "engine.cache_gib=0.05", "engine.max_context=256"};
                                 all.insert(all.end(), overrides.begin(), overrides.end());
                                 return all;
                             }())),
          model(open_model(config)),
          runner(test_world(), nullptr, config, model) {
        WorkloadOptions options{.num_requests = 10,
                                .input = parse_length("uniform:10:90", "--input"),
                                .output = parse_length("uniform:2:12", "--output"),
                                .prefix_share = 0.5,
                                .vocab_size = model.source->config().vocab_size};
        workload = make_workload(options);
    }
    ThroughputOutcome run(const std::string& layout, int64_t micro_batches = 1,
                          const std::string& mode = "auto", const std::string& transport = "auto") {
        const ThroughputCase about{.layout = layout,
                                   .max_batch = config.engine.max_batch,
                                   .micro_batches = micro_batches,
                                   .mode = mode,
                                   .transport = transport,
                                   .threads = 1};
        return runner.run(about, parse_layout_choice(layout, "--layout"), workload,
                          {.num_repetitions = 2, .num_warmup_requests = 3});
    }

    Config config;
    OpenedModel model;
    ThroughputRunner runner;
    std::vector<WorkloadRequest> workload;
};

std::vector<std::string> layouts_for(int size) {
    std::vector<std::string> layouts{"colocated"};
    if (size > 1) layouts.push_back("1:1");
    if (size > 2) layouts.push_back("2:1");
    if (size > 3) {
        layouts.push_back("2:2:2");
        layouts.push_back("1:3");
    }
    return layouts;
}

uint64_t outputs_of(const Repetition& repetition) {
    uint64_t sum = 0;
    for (const RankReport& rank : repetition.ranks) sum += rank.outputs;
    return sum;
}

TEST(Throughput, EveryLayoutGivesTheSameOutputsAndItsPhasesAddUp) {
    Bench bench;
    int64_t num_output = 0;
    for (const WorkloadRequest& request : bench.workload) num_output += request.max_tokens;
    std::optional<uint64_t> outputs;
    for (const std::string& layout : layouts_for(test_world().size())) {
        const ThroughputOutcome outcome = bench.run(layout);
        if (test_world().rank() != 0) continue;
        SCOPED_TRACE(layout);
        ASSERT_EQ(outcome.repetitions.size(), 2u);
        for (const Repetition& repetition : outcome.repetitions) {
            EXPECT_TRUE(repetition.all_finished(10));
            EXPECT_TRUE(repetition.expert_rows_match(bench.model.source->config()));
            EXPECT_EQ(repetition.sum(&RankReport::num_wrong_length), 0);
            EXPECT_EQ(repetition.sum(&RankReport::num_output_tokens), num_output);
            EXPECT_EQ(repetition.requests.size(), 10u);
            EXPECT_EQ(std::ssize(repetition.between_tokens_s), num_output - 10);
            EXPECT_EQ(outputs_of(repetition), outputs.value_or(outputs_of(repetition)));
            outputs = outputs_of(repetition);
            for (const RankReport& rank : repetition.ranks)
                EXPECT_NEAR(rank.covered(), 1, 0.03) << "rank " << rank.rank;
        }
    }
}

TEST(Throughput, OtherSettingsDoNotChangeOutputs) {
    Bench bench;
    const std::string layout = test_world().size() > 1 ? "1:1" : "colocated";
    const ThroughputOutcome plain = bench.run(layout);
    const ThroughputOutcome micro = bench.run(layout, 2, "sized");
    if (test_world().rank() != 0) return;
    EXPECT_EQ(outputs_of(plain.repetitions[0]), outputs_of(micro.repetitions[1]));
    EXPECT_EQ(plain.about.transport, test_world().size() > 1 ? plain.about.transport : "self");
    EXPECT_EQ(micro.about.micro_batches, 2);
}

// Though one of them had room for all.
TEST(Throughput, AttentionRanksShareFewRequests) {
    Bench bench({"engine.max_batch=16"});
    const ThroughputOutcome outcome = bench.run("colocated");
    if (test_world().rank() != 0) return;
    for (const Repetition& repetition : outcome.repetitions)
        for (const RankReport& rank : repetition.ranks)
            EXPECT_GE(rank.num_finished, 1) << "rank " << rank.rank;
}

TEST(Throughput, LayoutsThatNeedMoreRanksAreSkipped) {
    Bench bench;
    const ThroughputOutcome outcome = bench.run("5:4");
    EXPECT_TRUE(outcome.repetitions.empty());
    EXPECT_THAT(outcome.about.skipped, ::testing::HasSubstr("needs 9 ranks, this job has"));
}

TEST(Throughput, OpenLoopWaitsForArrivals) {
    Bench bench;
    for (size_t i = 0; i < bench.workload.size(); ++i)
        bench.workload[i].arrival_s = 0.02 * static_cast<double>(i);
    bench.workload.back().arrival_s = 1.5;
    const ThroughputOutcome outcome = bench.run("colocated:1");
    if (test_world().rank() != 0) return;
    for (const Repetition& repetition : outcome.repetitions) {
        EXPECT_TRUE(repetition.all_finished(10));
        EXPECT_GE(repetition.wall_s, 1.5);
        double others_end_s = 0;
        for (const RequestLatency& request : repetition.requests) {
            EXPECT_GT(request.ttft_s, 0);
            const double arrival_s = bench.workload[static_cast<size_t>(request.index)].arrival_s;
            if (arrival_s < 1.5) others_end_s = std::max(others_end_s, arrival_s + request.total_s);
        }
        // On a machine so busy that the last request found others still there, nobody idled.
        const int64_t idle_ns = repetition.ranks[0].zones[static_cast<size_t>(Zone::idle)].time_ns;
        EXPECT_TRUE(idle_ns > 0 || others_end_s > 1.4) << others_end_s;
    }
}

TEST(Throughput, StoppedBeforeTheTracedRepetitionNoTraceIsNamed) {
    Bench bench;
    const testing::TempDir dir;
    const auto begin = std::chrono::steady_clock::now();
    const ThroughputCase about{.layout = "colocated",
                               .max_batch = bench.config.engine.max_batch,
                               .mode = "auto",
                               .transport = "auto",
                               .threads = 1,
                               .trace = dir / "trace.json"};
    const ThroughputOutcome outcome = bench.runner.run(
        about, parse_layout_choice("colocated", "--layout"), bench.workload,
        {.num_repetitions = 1000, .num_warmup_requests = 0, .stop_requested = [begin] {
             return std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(500);
         }});
    EXPECT_LT(outcome.repetitions.size(), 1000u);
    EXPECT_EQ(outcome.about.trace, "");
}

TEST(Throughput, ARequestThatDoesNotFitIsAUsageError) {
    Bench bench;
    bench.workload[3].max_tokens = 300;
    EXPECT_ERROR(bench.run("colocated"), ErrorKind::usage, "a request cannot run: ");
}

TEST(Throughput, ReportHoldsEverything) {
    Bench bench;
    const std::string layout = test_world().size() > 1 ? "1:1" : "colocated";
    ThroughputReport report({.ttft_ms = 1e6}, bench.model.source->config());
    const ThroughputOutcome outcome = bench.run(layout), none = bench.run("9:9");
    if (test_world().rank() != 0) return;
    report.add(outcome);
    report.add(none);
    EXPECT_TRUE(report.all_valid());
    const Json json = Json::parse(report.report().to_json());
    const Json& row = json["rows"][0];
    EXPECT_EQ(row["layout"], layout);
    EXPECT_EQ(row["validity"]["all_finished"], true);
    EXPECT_EQ(row["latency"]["ttft_ms"]["count"], 20);
    EXPECT_EQ(row["goodput"]["share"], 1.0);
    EXPECT_EQ(row["ranks_detail"].size(), static_cast<size_t>(test_world().size() > 1 ? 2 : 1));
    for (const Json& rank : row["ranks_detail"]) {
        double sum = 0;
        for (const Json& phase : rank["phases"]) sum += phase["time_s"].get<double>();
        EXPECT_NEAR(sum / rank["wall_s"].get<double>(), 1, 0.03);
    }
    EXPECT_EQ(row["expert_load"].size(), 4u);  // the demo model has five layers, one of them dense
    for (const Json& layer : row["expert_load"]) EXPECT_GE(layer["max_over_mean"].get<double>(), 1);
    EXPECT_GT(row["exchange"]["dispatch_bytes"].get<int64_t>(), 0);
    EXPECT_GT(row["output_tokens_per_s"].get<double>(), 0);
    EXPECT_EQ(json["rows"][1]["valid"], "skipped");
    EXPECT_THAT(report.report().to_text(), ::testing::HasSubstr("out tok/s"));
    EXPECT_THAT(report.notes(), ::testing::HasSubstr("experts"));
}

TEST(LayoutChoice, IsReadAndRefused) {
    const LayoutChoice both = parse_layout_choice("2:3", "--layout");
    EXPECT_EQ(both.num_ranks(8), 5);
    EXPECT_EQ(parse_layout_choice("2:2:2", "--layout").tp_size, 2);
    EXPECT_EQ(parse_layout_choice("colocated", "--layout").num_ranks(8), 8);
    EXPECT_EQ(parse_layout_choice("colocated:4", "--layout").num_ranks(8), 4);
    EXPECT_EQ(parse_layout_choice("colocated:4:2", "--layout").tp_size, 2);
    for (const char* bad : {"", "2", "2:", "2:0", "2:2:", "2:2:0", "2:2:1:1", "2:2x", "colocated:",
                            "colocated:0", "colocated:2:", "colocated:2:2:2", "apart"})
        EXPECT_ERROR(parse_layout_choice(bad, "--layout"), ErrorKind::usage, "--layout");
}

}  // namespace
}  // namespace ferry
