#include "runtime/request_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "comm/shared_counter.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Runs two requests at a time, or as many as it is told, each for as many steps as it has prompt
// tokens; refuses those that have none.
class FakeEngine {
  public:
    explicit FakeEngine(int64_t max_running = 2) : max_running_(max_running) {}
    void submit(Request request) {
        if (request.prompt_tokens.empty()) return finish(request, FinishReason::error);
        running_.push_back(std::move(request));
        most_running_ = std::max(most_running_, running_.size());
    }
    int64_t room_left() const { return max_running_ - num_unfinished(); }
    int64_t num_unfinished() const { return static_cast<int64_t>(running_.size()); }
    bool step(bool more_coming = false) {
        ++num_steps_;
        std::erase_if(running_, [&](Request& request) {
            request.prompt_tokens.pop_back();
            if (!request.prompt_tokens.empty()) return false;
            finish(request, FinishReason::length);
            return true;
        });
        return more_coming || !running_.empty();
    }
    void cancel_all() { running_.clear(); }
    void announce_stop() { stopping_ = true; }
    bool stop_announced() const { return stop_announced_; }
    std::vector<Completion> take_finished() { return std::exchange(finished_, {}); }

    size_t most_running_ = 0;
    int num_steps_ = 0;
    bool stopping_ = false;
    bool stop_announced_ = false;

  private:
    void finish(const Request& request, FinishReason reason) {
        Completion completion;
        completion.index = request.index;
        completion.sample = request.sample;
        completion.finish_reason = reason;
        finished_.push_back(std::move(completion));
    }

    int64_t max_running_;
    std::vector<Request> running_;
    std::vector<Completion> finished_;
};

class ListReader : public RequestReader {
  public:
    explicit ListReader(std::vector<RequestLine> lines) : lines_(std::move(lines)) {}
    bool next(RequestLine& line) override {
        if (num_read_ == lines_.size()) return false;
        line = lines_[num_read_++];
        return true;
    }
    bool skip() override {
        if (num_read_ == lines_.size()) return false;
        ++num_read_;
        ++num_skipped_;
        return true;
    }
    bool ready() override { return num_read_ < num_ready_; }
    bool all_ready() override { return all_ready_; }

    size_t num_read_ = 0;
    size_t num_skipped_ = 0;
    size_t num_ready_ = SIZE_MAX;
    bool all_ready_ = true;

  private:
    std::vector<RequestLine> lines_;
};

class ListSink : public ResultSink {
  public:
    bool is_done(int64_t index, int64_t sample) const override {
        return done_.contains({index, sample});
    }
    void expect(int64_t index, int64_t num_results) override {
        expected_.emplace_back(index, num_results);
    }
    void accept(Completion completion) override { accepted_.push_back(completion.index); }

    std::set<std::pair<int64_t, int64_t>> done_;
    std::vector<int64_t> accepted_;
    std::vector<std::pair<int64_t, int64_t>> expected_;
};

RequestLine line_of(int64_t index, size_t num_steps, int64_t num_samples = 1) {
    RequestLine line;
    line.index = index;
    for (int64_t sample = 0; sample < num_samples; ++sample) {
        Request request;
        request.index = index;
        request.sample = sample;
        request.prompt_tokens.resize(num_steps);
        line.requests.push_back(request);
    }
    return line;
}

RequestLine failed_line(int64_t index) {
    RequestLine line;
    line.index = index;
    line.failed.emplace();
    line.failed->index = index;
    return line;
}

TEST(RunRequests, AllResultsReachTheSinkAndLinesAreReadAsThereIsRoom) {
    FakeEngine engine;
    ListReader reader({line_of(0, 5), line_of(1, 1), failed_line(2), line_of(4, 2)});
    ListSink sink;
    std::vector<size_t> read_after_step;
    const LoopEnd end = run_requests(
        engine, reader, sink, {.after_step = [&] { read_after_step.push_back(reader.num_read_); }});
    EXPECT_EQ(end, LoopEnd::finished);
    EXPECT_THAT(sink.accepted_, ElementsAre(1, 2, 4, 0));
    EXPECT_EQ(engine.most_running_, 2u);
    EXPECT_EQ(read_after_step.front(), 2u);
    EXPECT_THAT(sink.expected_,
                ElementsAre(std::pair(0, 1), std::pair(1, 1), std::pair(2, 1), std::pair(4, 1)));
}

TEST(RunRequests, WhatIsDoneIsNotDoneAgain) {
    FakeEngine engine;
    ListReader reader({line_of(0, 1, 3), failed_line(1), line_of(2, 1)});
    ListSink sink;
    sink.done_ = {{0, 0}, {0, 2}, {1, 0}, {2, 0}};
    run_requests(engine, reader, sink, {});
    EXPECT_THAT(sink.accepted_, ElementsAre(0));
}

TEST(RunRequests, NoLinesNoWork) {
    FakeEngine engine;
    ListReader reader({});
    ListSink sink;
    EXPECT_EQ(run_requests(engine, reader, sink, {}), LoopEnd::finished);
    EXPECT_THAT(sink.accepted_, IsEmpty());
    EXPECT_LE(engine.num_steps_, 1);
}

// Who writes into a pipe may wait for an answer before asking again.
TEST(RunRequests, ARefusalIsGivenOutBeforeTheNextLineArrives) {
    FakeEngine engine;
    ListReader reader({line_of(0, 0), line_of(1, 1)});
    reader.num_ready_ = 1;
    ListSink sink;
    std::vector<int64_t> answered;
    run_requests(engine, reader, sink, {.wait_for_arrival = [&] {
                     answered = sink.accepted_;
                     reader.num_ready_ = SIZE_MAX;
                 }});
    EXPECT_THAT(answered, ElementsAre(0));
    EXPECT_THAT(sink.accepted_, ElementsAre(0, 1));
}

TEST(RunRequests, AStopKeepsWhatFinishedAndReadsNoMore) {
    FakeEngine engine;
    ListReader reader({line_of(0, 1), line_of(1, 9), line_of(2, 1)});
    ListSink sink;
    bool stop = false;
    const LoopEnd end =
        run_requests(engine, reader, sink,
                     {.stop_requested = [&] { return stop; }, .after_step = [&] { stop = true; }});
    EXPECT_EQ(end, LoopEnd::stopped);
    EXPECT_EQ(engine.num_steps_, 1);
    EXPECT_THAT(sink.accepted_, ElementsAre(0));
    EXPECT_EQ(reader.num_read_, 2u);
}

// Hands out what the test says, then nothing.
class FakeClaims {
  public:
    explicit FakeClaims(std::vector<Claim> claims) : claims_(std::move(claims)) {}
    void request(int64_t count) {
        requested_ = true;
        asked_.push_back(count);
    }
    bool requested() const { return requested_; }
    std::optional<Claim> poll() {
        if (!requested_) return std::nullopt;
        requested_ = false;
        return num_claimed_ < claims_.size() ? claims_[num_claimed_++] : Claim{};
    }

    std::vector<int64_t> asked_;

  private:
    std::vector<Claim> claims_;
    size_t num_claimed_ = 0;
    bool requested_ = false;
};

TEST(RunClaimedRequests, OnlyClaimedLinesAreParsed) {
    FakeEngine engine;
    ListReader reader({line_of(0, 1), line_of(1, 1), line_of(2, 2), line_of(3, 1), line_of(4, 1)});
    FakeClaims claims({{1, 1}, {3, 1}, {7, 1}});  // 7: after the end
    ListSink sink;
    EXPECT_EQ(run_claimed_requests(engine, reader, sink, claims, {}), LoopEnd::finished);
    EXPECT_THAT(sink.accepted_, ElementsAre(1, 3));
    EXPECT_THAT(sink.expected_, ElementsAre(std::pair(1, 1), std::pair(3, 1)));
    EXPECT_EQ(reader.num_skipped_, 3u);
}

TEST(RunClaimedRequests, AClaimIsTakenAsFarAsThereIsRoom) {
    FakeEngine engine(5);
    std::vector<RequestLine> lines;
    for (int64_t i = 0; i < 12; ++i) lines.push_back(line_of(i, 2));
    ListReader reader(lines);
    FakeClaims claims({{0, 4}, {6, 2}, {8, 4}});  // others have 4 and 5
    ListSink sink;
    EXPECT_EQ(run_claimed_requests(engine, reader, sink, claims, {}), LoopEnd::finished);
    EXPECT_THAT(sink.accepted_, ElementsAre(0, 1, 2, 3, 6, 7, 8, 9, 10, 11));
    EXPECT_EQ(engine.most_running_, 5u);
    EXPECT_THAT(claims.asked_, ElementsAre(5, 1, 4, 1));
    EXPECT_LE(engine.num_steps_, 7);  // one by one it would be 11
}

TEST(RunClaimedRequests, WhatIsDoneTakesNoStep) {
    FakeEngine engine(5);
    ListReader reader({line_of(0, 2), line_of(1, 2), line_of(2, 2), line_of(3, 2)});
    FakeClaims claims({{0, 4}});
    ListSink sink;
    sink.done_ = {{0, 0}, {1, 0}, {2, 0}};
    run_claimed_requests(engine, reader, sink, claims, {});
    EXPECT_THAT(sink.accepted_, ElementsAre(3));
    EXPECT_LE(engine.num_steps_, 3);
}

TEST(RunClaimedRequests, LinesThatAreToComeAreClaimedOneByOne) {
    FakeEngine engine(5);
    ListReader reader({line_of(0, 1), line_of(1, 1)});
    reader.all_ready_ = false;
    FakeClaims claims({{0, 1}, {1, 1}});
    ListSink sink;
    run_claimed_requests(engine, reader, sink, claims, {});
    EXPECT_THAT(sink.accepted_, ElementsAre(0, 1));
    EXPECT_THAT(claims.asked_, testing::Each(1));
}

TEST(RunClaimedRequests, AStopOfAnotherRankStopsThisOne) {
    FakeEngine engine;
    engine.stop_announced_ = true;
    ListReader reader({line_of(0, 1), line_of(1, 1)});
    FakeClaims claims({{0, 1}, {1, 1}});
    ListSink sink;
    EXPECT_EQ(run_claimed_requests(engine, reader, sink, claims, {}), LoopEnd::stopped);
    EXPECT_THAT(sink.accepted_, IsEmpty());
}

TEST(RunClaimedRequests, AStopIsAnnounced) {
    FakeEngine engine;
    ListReader reader({line_of(0, 1), line_of(1, 1)});
    FakeClaims claims({{0, 1}, {1, 1}});
    ListSink sink;
    run_claimed_requests(engine, reader, sink, claims, {.stop_requested = [] { return true; }});
    EXPECT_TRUE(engine.stopping_);
}

}  // namespace
}  // namespace ferry
