#include "launch/status_file.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

RankStatus rank_status(int64_t tokens, int64_t attention_ms, int64_t wait_ms) {
    RankStatus status;
    const auto set = [&](Tally tally, int64_t value) {
        status.tallies[static_cast<size_t>(tally)] = value;
    };
    set(Tally::tokens, tokens);
    set(Tally::done, 3);
    set(Tally::running, 7);
    set(Tally::waiting, 2);
    set(Tally::cache_pages, 10);
    set(Tally::cache_pages_used, 4);
    status.zone_ns[static_cast<size_t>(Zone::attention)] = attention_ms * 1'000'000;
    status.zone_ns[static_cast<size_t>(Zone::combine_wait)] = wait_ms * 1'000'000;
    return status;
}

JobDescription job_of(size_t num_ranks) {
    JobDescription job{
        .command = "generate", .model = "demo", .layout = "2 colocated ranks", .num_requests = 20};
    for (size_t rank = 0; rank < num_ranks; ++rank)
        job.ranks.push_back({"host" + std::to_string(rank), "colocated"});
    return job;
}

// Two seconds in which rank 1 computes most of the time and rank 0 waits for it.
const JobSnapshot kBefore{.time_s = 10, .ranks = {rank_status(100, 0, 0), rank_status(50, 500, 0)}};
const JobSnapshot kNow{.time_s = 12,
                       .ranks = {rank_status(200, 520, 1400), rank_status(110, 2300, 200)}};

TEST(StatusFile, RatesAreOfTheTimeBetween) {
    const JobRates rates = rates_between(kBefore, kNow);
    EXPECT_EQ(rates.tokens_per_s, 80);
    EXPECT_DOUBLE_EQ(rates.phase_shares[static_cast<size_t>(Zone::attention)], 2.32 / 4);
    EXPECT_EQ(rates.slowest_phase, static_cast<int>(Zone::attention));
    EXPECT_EQ(rates.slowest_rank, 1);
    EXPECT_DOUBLE_EQ(rates.busy_shares[1], 0.9);
    // Totals that began anew count from zero.
    EXPECT_EQ(
        rates_between(kNow, {.time_s = 13, .ranks = {rank_status(5, 1, 0), rank_status(1, 1, 0)}})
            .tokens_per_s,
        6);
    const JobRates none = rates_between({}, kNow);
    EXPECT_EQ(none.tokens_per_s, 0);
    EXPECT_EQ(none.slowest_rank, -1);
}

TEST(StatusFile, EarlierRunsAndFurtherSamplesCount) {
    JobDescription job = job_of(2);
    job.num_done_before = 14;
    EXPECT_THAT(status_text(status_json(job, JobState::running, kNow, {}, 1), "x", 1),
                HasSubstr("] 20 of 20 done"));
    job.num_done_before = 15;
    EXPECT_THAT(status_text(status_json(job, JobState::running, kNow, {}, 1), "x", 1),
                HasSubstr("] 21 of 21 done"));
}

TEST(StatusFile, TextSaysWhatTheFileHolds) {
    const std::string json =
        status_json(job_of(2), JobState::running, kNow, rates_between(kBefore, kNow), 65);
    const Json parsed = Json::parse(json);
    EXPECT_EQ(parsed["requests"]["running"], 10);
    EXPECT_EQ(parsed["requests"]["waiting"], 4);
    EXPECT_EQ(parsed["slowest_rank"]["host"], "host1");
    EXPECT_FALSE(has_ended(json));
    const std::string text = status_text(json, "x", 1);
    for (const char* part :
         {"ferry generate: running after 1:05\n", "6 of 20 done, 10 running, 4 waiting",
          "80.0/s now, 310 generated", "8 of 20 pages", "phase attention (58 % of all ranks' time)",
          "rank 1 on host1 (colocated, busy 90 %)", "combine_wait"})
        EXPECT_THAT(text, HasSubstr(part));
    EXPECT_THAT(text, ::testing::Not(HasSubstr("no news")));
    EXPECT_THAT(status_text(json, "x", 75), HasSubstr("no news for 1:15"));
    EXPECT_TRUE(has_ended(status_json(job_of(2), JobState::finished, kNow, {}, 1)));
    EXPECT_ERROR(status_text("{}", "a/status.json", 0), ErrorKind::input, "a/status.json");
    EXPECT_ERROR(status_text("{\"state\": 1, \"requests\": 2}", "b", 0), ErrorKind::input, "b");
    EXPECT_ERROR(has_ended("torn {"), ErrorKind::input, "status.json");
}

// As file names have them.
TEST(StatusFile, ANameThatIsNoUtf8EndsNothing) {
    JobDescription job = job_of(1);
    job.model = "mod\xE8le";
    EXPECT_THAT(status_text(status_json(job, JobState::running, kNow, {}, 1), "x", 1),
                HasSubstr("model     mod\xEF\xBF\xBDle\n"));
}

TEST(StatusFile, IsReplacedAtMostOnceASecondAndSaysHowItEnded) {
    const testing::TempDir dir;
    int num_taken = 0;
    const auto take = [&] {
        ++num_taken;
        return kNow;
    };
    const std::string path = dir / kStatusFileName;
    {
        StatusFile status(dir / "", job_of(2), take);
        EXPECT_THAT(testing::read_file(path), HasSubstr("loading"));
        for (int i = 0; i < 1000; ++i) status.update();
        EXPECT_LE(num_taken, 2);
    }
    EXPECT_THAT(testing::read_file(path), HasSubstr("stopped"));
    EXPECT_FALSE(std::filesystem::exists(path + ".new"));
    StatusFile none("", job_of(2), take);
    none.update();
    none.finish(JobState::finished);
    EXPECT_LE(num_taken, 3);
    StatusFile unwritable(dir / "no/such", job_of(2), take);  // is told, and ends nothing
    unwritable.update();
}

}  // namespace
}  // namespace ferry
