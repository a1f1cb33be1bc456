// The engine on one rank: the same bits whatever runs beside a request and however its rows are cut
// (DESIGN 4.1).
#include "runtime/engine.h"

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <map>

#include "base/random.h"
#include "runtime/rank_model.h"
#include "tests/support/allocation_count.h"
#include "tests/support/mtp_model.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

std::string golden_model(const std::string& family) {
    return std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/" + family;
}

// A tiny model, loaded once.
class EngineTest : public testing::Test {
  protected:
    static constexpr int64_t kRequests = 32;
    static constexpr int64_t kMaxTokens = 4096;  // of one step

    explicit EngineTest(const Numerics& numerics = {}, bool mtp = false)
        : source_(golden_model("v3"), mtp),
          kernels_(make_cpu_kernels(2)),
          transport_(make_self_transport()),
          rank_(source_, *kernels_, numerics, single_rank_fabric(source_.config(), kMaxTokens, 2),
                *transport_) {}

    Engine make_engine(const EngineOptions& options,
                       std::optional<Tokenizer> tokenizer = std::nullopt) {
        return Engine(*kernels_, rank_.model(), rank_.fabric(), rank_.experts(), options, {},
                      std::move(tokenizer));
    }
    Request request(int64_t index, int64_t prompt_length, int64_t max_tokens) const {
        Random random(static_cast<uint64_t>(index));
        Request made{.index = index,
                     .sample = 0,
                     .id = {fmt::format("r{}", index), false},
                     .prompt_tokens = {},
                     .sampling = {}};
        for (int64_t i = 0; i < prompt_length; ++i)
            made.prompt_tokens.push_back(static_cast<int32_t>(
                random.next_u32() % static_cast<uint32_t>(source_.config().vocab_size)));
        made.sampling.max_tokens = max_tokens;
        made.sampling.temperature = index % 2 == 0 ? 0 : 0.8;
        made.sampling.seed = 5;
        made.sampling.logprobs = 2;
        return made;
    }
    // 32 requests of uneven lengths; every third shares a prompt prefix of two pages, two prompts
    // are longer than any small chunk or budget.
    std::vector<Request> requests() const {
        std::vector<Request> all;
        for (int64_t i = 0; i < kRequests; ++i) {
            all.push_back(request(i, i % 16 == 5 ? 700 + i : 1 + i * 13 % 90, 5 + i * 7 % 60));
            if (i % 3 != 0) continue;
            const std::vector<int32_t> shared = request(1000, 130, 1).prompt_tokens;
            all.back().prompt_tokens.insert(all.back().prompt_tokens.begin(), shared.begin(),
                                            shared.end());
        }
        return all;
    }
    static std::map<int64_t, Completion> run(Engine& engine, std::vector<Request> requests) {
        for (Request& request : requests) engine.submit(std::move(request));
        while (engine.step()) {
        }
        std::map<int64_t, Completion> completions;
        for (Completion& completion : engine.take_finished()) {
            const int64_t index = completion.index;
            EXPECT_TRUE(completions.emplace(index, std::move(completion)).second);
        }
        return completions;
    }
    // Tokens, and log-probabilities bit for bit.
    static void expect_same(const std::map<int64_t, Completion>& a,
                            const std::map<int64_t, Completion>& b) {
        const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
        ASSERT_EQ(a.size(), b.size());
        for (const auto& [index, one] : a) {
            const Completion& other = b.at(index);
            ASSERT_EQ(one.finish_reason, FinishReason::length) << one.error;
            ASSERT_EQ(one.tokens, other.tokens) << index;
            ASSERT_EQ(one.logprobs.size(), one.tokens.size());
            for (size_t i = 0; i < one.tokens.size(); ++i) {
                ASSERT_EQ(bits(one.logprobs[i]), bits(other.logprobs[i])) << index << ", " << i;
                for (size_t j = 2 * i; j < 2 * i + 2; ++j) {
                    ASSERT_EQ(one.top_logprobs[j].token, other.top_logprobs[j].token);
                    ASSERT_EQ(bits(one.top_logprobs[j].logprob),
                              bits(other.top_logprobs[j].logprob));
                }
            }
        }
    }
    // Every request in an engine of its own.
    std::map<int64_t, Completion> alone() {
        std::map<int64_t, Completion> all;
        for (Request& one : requests()) {
            Engine engine =
                make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = kMaxTokens}});
            std::vector<Request> single;
            single.push_back(std::move(one));
            all.merge(run(engine, std::move(single)));
        }
        return all;
    }

    MtpModel source_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    RankModel rank_;
};

// DESIGN 4.1, on one rank: alone, among 31 others, in chunks of any size, with the prefix cache on
// and off, with room for prompts that stay expanded and without, after preemption.
class BatchInvariance : public EngineTest, public testing::WithParamInterface<DType> {
  protected:
    BatchInvariance() : EngineTest({.cache_dtype = GetParam()}) {}
};

TEST_P(BatchInvariance, NothingAroundARequestChangesABitOfIt) {
    const std::map<int64_t, Completion> expected = alone();
    ASSERT_EQ(expected.size(), static_cast<size_t>(kRequests));
    constexpr int64_t kSomeRoom = 1 << 20;  // for about 600 positions
    for (const int64_t expanded_bytes : {int64_t{0}, kSomeRoom})
        for (const auto& [share, chunk] : {std::pair{false, 1},
                                           {false, 7},
                                           {false, 64},
                                           {false, 4096},
                                           {true, 1},
                                           {true, 7},
                                           {true, 64},
                                           {true, 4096}}) {
            SCOPED_TRACE(fmt::format("chunks of {}, prefix cache {}, {} bytes", chunk, share,
                                     expanded_bytes));
            Engine engine = make_engine({.scheduler = {.max_batch = kRequests,
                                                       .max_batch_tokens = kMaxTokens,
                                                       .max_prefill_chunk = chunk},
                                         .num_pages = 128,
                                         .expanded_bytes = expanded_bytes,
                                         .share_prefixes = share});
            // The first comes early, so that others find its prefix.
            engine.submit(requests()[0]);
            for (int64_t step = 0; step < 140; ++step) engine.step();
            std::vector<Request> others = requests();
            others.erase(others.begin());
            const auto all = run(engine, std::move(others));
            expect_same(all, expected);
            EXPECT_EQ(engine.num_preemptions(), 0);
            EXPECT_EQ(engine.num_prefix_hits() > 0, share);
        }
    for (const bool share : {false, true}) {
        Engine small = make_engine({.scheduler = {.max_batch = kRequests, .max_batch_tokens = 300},
                                    .num_pages = 24,
                                    .expanded_bytes = share ? kSomeRoom : 0,
                                    .share_prefixes = share});
        expect_same(run(small, requests()), expected);
        EXPECT_GT(small.num_preemptions(), 3);
    }
}

// Drafts that are what comes, but for some, in every place: with any number of them, cut by a small
// budget or for want of pages, and over the two micro-batches that a step has here.
TEST_P(BatchInvariance, DraftsChangeNoBit) {
    const std::map<int64_t, Completion> expected = alone();
    int64_t num_steps_without = 0;
    for (const int64_t num_drafts : {0, 1, 3, 16})
        for (const int64_t num_pages : {128, 24}) {
            SCOPED_TRACE(fmt::format("{} drafts, {} pages", num_drafts, num_pages));
            Engine engine = make_engine({.scheduler = {.max_batch = kRequests,
                                                       .max_batch_tokens = 300,
                                                       .max_prefill_chunk = 64,
                                                       .max_drafts = num_drafts},
                                         .num_pages = num_pages});
            Random random(static_cast<uint64_t>(num_drafts));
            int64_t num_proposed = 0;
            engine.set_drafter(
                [&](const Request& request, std::vector<int32_t>& tokens, int64_t max) {
                    const std::vector<int32_t>& all = expected.at(request.index).tokens;
                    const size_t done = tokens.size() - request.prompt_tokens.size();
                    EXPECT_LT(static_cast<int64_t>(done) + max, request.sampling.max_tokens);
                    const int64_t num = random.next_u32() % (static_cast<uint32_t>(max) + 1);
                    for (size_t i = done; i < done + static_cast<size_t>(num); ++i)
                        tokens.push_back(random.next_u32() % 5 == 0 ? (all[i] + 1) % 256 : all[i]);
                    num_proposed += num;
                    return num;
                });
            int64_t num_steps = 0;
            for (Request& request : requests()) engine.submit(std::move(request));
            for (bool more = true; more; ++num_steps) {
                more = engine.step();
                const Engine::StepRows rows = engine.last_step();
                ASSERT_LE(rows.prompt + rows.generated, 300);
                ASSERT_LE(rows.chosen, rows.wanted);
            }
            std::map<int64_t, Completion> all;
            for (Completion& completion : engine.take_finished())
                all.emplace(completion.index, std::move(completion));
            expect_same(all, expected);
            EXPECT_EQ(engine.pages().num_held(), 0);
            EXPECT_LE(engine.num_drafts(), num_proposed);
            EXPECT_LT(engine.num_accepted_drafts(), std::max<int64_t>(engine.num_drafts(), 1));
            EXPECT_GE(3 * engine.num_accepted_drafts(), engine.num_drafts());
            EXPECT_EQ(engine.num_preemptions() > 3, num_pages == 24);
            if (num_drafts == 0 && num_pages == 128) num_steps_without = num_steps;
            if (num_drafts >= 3 && num_pages == 128) {
                EXPECT_LT(3 * num_steps, 2 * num_steps_without);
            }
        }
}
INSTANTIATE_TEST_SUITE_P(Caches, BatchInvariance, testing::Values(DType::f32, DType::bf16));

// The model's own module drafts: whatever it says, the bits are those without; and it says what it
// does of the same tokens computed anew, though most of its drafts were wrong and taken off before.
class MtpTest : public EngineTest {
  protected:
    MtpTest() : EngineTest({}, true) {}
};

TEST_F(MtpTest, ChangesNoBitAndDraftsWhatItDoesAnew) {
    const std::map<int64_t, Completion> expected = alone();
    OneRankModel anew(source_);
    for (const int64_t num_pages : {128, 24}) {
        SCOPED_TRACE(num_pages);
        Engine engine = make_engine({.scheduler = {.max_batch = kRequests,
                                                   .max_batch_tokens = 300,
                                                   .max_prefill_chunk = 64,
                                                   .max_drafts = 3},
                                     .num_pages = num_pages,
                                     .share_prefixes = false});
        int64_t num_checked = 0, num_full = 0;
        engine.set_draft_hook([&](const Request& request, std::span<const int32_t> tokens,
                                  std::span<const int32_t> drafts) {
            num_full += drafts.size() == 3;
            if (tokens.size() > 150 || (tokens.size() + drafts.size()) % 16 != 0) return;
            std::vector<int32_t> again;
            anew.mtp_logits({tokens.begin(), tokens.end()}, std::ssize(request.prompt_tokens), 512,
                            std::ssize(drafts) - 1, again);
            EXPECT_TRUE(std::ranges::equal(again, drafts)) << request.index;
            ++num_checked;
        });
        expect_same(run(engine, requests()), expected);
        EXPECT_EQ(engine.pages().num_held(), 0);
        EXPECT_GT(num_checked, 20);
        EXPECT_GT(num_full, 300);
        EXPECT_GT(engine.num_drafts(), 3 * num_full);
        EXPECT_EQ(engine.num_preemptions() > 3, num_pages == 24);
    }
}

// A module of random weights is hardly ever right, so few of its drafts are tried.
TEST_F(MtpTest, TriesFewDraftsWhereMostAreWrong) {
    const std::map<int64_t, Completion> expected = alone();
    int64_t num_drafts[2] = {};
    for (const bool learns : {false, true}) {
        Engine engine = make_engine(
            {.scheduler = {.max_batch = kRequests, .max_batch_tokens = 300, .max_drafts = 3},
             .num_pages = 128,
             .draft_acceptance = learns ? 0.4 : 0.0});
        expect_same(run(engine, requests()), expected);
        num_drafts[learns] = engine.num_drafts();
    }
    EXPECT_GT(num_drafts[1], 0);
    EXPECT_LT(5 * num_drafts[1], num_drafts[0]);
}

TEST_F(MtpTest, SharesPrefixesAndDoesNotAllocate) {
    const std::map<int64_t, Completion> expected = alone();
    Engine engine = make_engine(
        {.scheduler = {.max_batch = kRequests, .max_batch_tokens = 300, .max_drafts = 2},
         .num_pages = 128,
         .draft_acceptance = 0.01});
    expect_same(run(engine, requests()), expected);
    EXPECT_GT(engine.num_prefix_hits(), 0);
    for (int64_t i = 0; i < 8; ++i) engine.submit(request(i, 100, 400));
    for (int i = 0; i < 40; ++i) engine.step();
    const int64_t before = num_allocations();
    for (int i = 0; i < 100; ++i) engine.step();
    EXPECT_EQ(num_allocations() - before, 0);
    ASSERT_EQ(engine.num_running(), 8);
}

// What ends a text ends it within drafts as well.
TEST_F(EngineTest, DraftsGoNoFurtherThanTheText) {
    const auto stopping = [&](const std::vector<int32_t>& tokens, int64_t min_tokens) {
        Request request = this->request(3, 20, 30);
        if (!tokens.empty()) request.sampling.stop_token_ids = {tokens[9]};
        request.sampling.min_tokens = min_tokens;
        return request;
    };
    Engine plain = make_engine({});
    const std::vector<int32_t> tokens = run(plain, {stopping({}, 0)}).at(3).tokens;
    for (const int64_t min_tokens : {0, 15}) {
        const Completion expected = run(plain, {stopping(tokens, min_tokens)}).at(3);
        Engine engine = make_engine({.scheduler = {.max_drafts = 16}});
        engine.set_drafter([&](const Request&, std::vector<int32_t>& so_far, int64_t max) {
            const size_t done = so_far.size() - 20;
            const auto first = static_cast<int64_t>(done);
            const auto& right = min_tokens == 0 ? tokens : expected.tokens;
            const int64_t num = std::clamp<int64_t>(std::ssize(right) - first, 0, max);
            so_far.insert(so_far.end(), right.begin() + first, right.begin() + first + num);
            return num;
        });
        std::vector<int32_t> seen;
        engine.set_token_hook([&](const Request&, int32_t token) { seen.push_back(token); });
        const Completion got = run(engine, {stopping(tokens, min_tokens)}).at(3);
        EXPECT_EQ(got.tokens, expected.tokens);
        EXPECT_EQ(got.finish_reason, expected.finish_reason);
        EXPECT_EQ(seen, expected.tokens);
        EXPECT_EQ(got.logprobs, expected.logprobs);
        EXPECT_GT(engine.num_accepted_drafts(), 2);
        EXPECT_EQ(engine.num_generated_tokens(), std::ssize(expected.tokens));
    }
}

// A text that repeats itself is found out by prompt lookup.
TEST_F(EngineTest, PromptLookupSavesSteps) {
    std::map<int64_t, Completion> expected;
    int64_t num_steps[2] = {};
    for (const int64_t num_drafts : {0, 4}) {
        Engine engine = make_engine(
            {.scheduler = {.max_batch = 4, .max_batch_tokens = 64, .max_drafts = num_drafts}});
        for (int64_t i = 0; i < 4; ++i) {
            Request repeats = request(i, 20, 200);
            repeats.sampling.repetition_penalty = 0.5;  // what was said before is likelier
            engine.submit(std::move(repeats));
        }
        while (engine.step()) ++num_steps[num_drafts > 0];
        std::map<int64_t, Completion> all;
        for (Completion& completion : engine.take_finished())
            all.emplace(completion.index, std::move(completion));
        if (num_drafts == 0) expected = all;
        expect_same(all, expected);
        EXPECT_EQ(engine.num_accepted_drafts() > 100, num_drafts > 0);
    }
    EXPECT_LT(num_steps[1], num_steps[0]);
}

// The cost of a step follows its tokens: neither the size of the cache nor the requests that wait
// count.
TEST_F(EngineTest, StepsCostWhatTheirTokensCost) {
    const auto step_us = [&](int64_t num_pages, int64_t num_waiting) {
        Engine engine = make_engine(
            {.scheduler = {.max_batch = 8, .max_batch_tokens = 64}, .num_pages = num_pages});
        for (int64_t i = 0; i < 8 + num_waiting; ++i) engine.submit(request(i, 20, 150));
        for (int i = 0; i < 10; ++i) engine.step();
        double best = 1e30;
        for (int i = 0; i < 100; ++i) {
            const auto begin = std::chrono::steady_clock::now();
            engine.step();
            const std::chrono::duration<double, std::micro> us =
                std::chrono::steady_clock::now() - begin;
            best = std::min(best, us.count());
        }
        EXPECT_EQ(engine.num_running(), 8);
        return best;
    };
    const double small = step_us(64, 0), large = step_us(20000, 5000);
    EXPECT_LT(large, 3 * small) << small << " us in a small engine";
}

TEST_F(EngineTest, RequestsThatCannotRunSayWhy) {
    Engine engine = make_engine({.scheduler = {.max_batch = 2, .max_batch_tokens = 64},
                                 .num_pages = 2,
                                 .max_context = 256});
    Request outside = request(0, 3, 4), empty = request(1, 0, 4);
    outside.prompt_tokens[1] = 100000;
    Request stop = request(4, 3, 4);
    stop.sampling.stop = {"x"};
    const auto done = run(engine, {outside, empty, request(2, 250, 10), request(3, 100, 60), stop,
                                   request(5, 100, 20)});
    EXPECT_EQ(done.at(0).error, "prompt token 100000 is outside the vocabulary of 256");
    EXPECT_EQ(done.at(1).error, "the prompt has no tokens");
    EXPECT_NE(done.at(2).error.find("exceed the longest context of 256"), std::string::npos);
    EXPECT_NE(done.at(3).error.find("need 3 cache pages"), std::string::npos);
    EXPECT_NE(done.at(4).error.find("tokenizer"), std::string::npos);
    EXPECT_EQ(done.at(5).finish_reason, FinishReason::length);
    EXPECT_EQ(engine.pages().num_held(), 0);
}

TEST_F(EngineTest, AContextThatTheCacheLimitsNamesTheCache) {
    Engine engine = make_engine({.scheduler = {.max_batch = 2, .max_batch_tokens = 64},
                                 .num_pages = 2,
                                 .max_context = 2 * kPageTokens});
    const auto done = run(engine, {request(0, 100, 29), request(1, 100, 28)});
    EXPECT_NE(done.at(0).error.find("exceed the longest context of 128 (all that the cache holds"),
              std::string::npos)
        << done.at(0).error;
    EXPECT_EQ(done.at(1).finish_reason, FinishReason::length);
}

TEST_F(EngineTest, StopTokensEndATextAndMinTokensHoldThemBack) {
    Engine engine = make_engine({});
    const std::vector<int32_t> tokens = run(engine, {request(2, 20, 12)}).at(2).tokens;
    Request stops = request(2, 20, 12);
    stops.sampling.stop_token_ids = {tokens[4]};
    const Completion stopped = run(engine, {stops}).at(2);
    const auto first = std::find(tokens.begin(), tokens.end(), tokens[4]);
    EXPECT_EQ(stopped.finish_reason, FinishReason::stop);
    EXPECT_EQ(stopped.tokens, std::vector<int32_t>(tokens.begin(), first + 1));
    stops.sampling.min_tokens = 12;
    const Completion held = run(engine, {stops}).at(2);
    EXPECT_EQ(held.tokens.size(), 12u);
    EXPECT_EQ(std::count(held.tokens.begin(), held.tokens.end(), tokens[4]), 0);
}

TEST_F(EngineTest, ASpecialTokenMayBeAStopString) {
    Engine plain = make_engine({});
    const std::vector<int32_t> tokens = run(plain, {request(2, 20, 12)}).at(2).tokens;
    const std::string json = fmt::format(
        R"({{"model": {{"type": "BPE", "vocab": {{"a": 0}}, "merges": []}},
             "decoder": {{"type": "ByteLevel"}},
             "added_tokens": [{{"id": {}, "content": "<|end|>", "special": true}}]}})",
        tokens[4]);
    Engine engine = make_engine({}, Tokenizer::from_json(json, "t.json"));
    Request stops = request(2, 20, 12);
    stops.sampling.stop = {"a b", "<|end|>"};
    const Completion stopped = run(engine, {stops}).at(2);
    const auto first = std::find(tokens.begin(), tokens.end(), tokens[4]);
    EXPECT_EQ(stopped.finish_reason, FinishReason::stop);
    EXPECT_EQ(stopped.tokens, std::vector<int32_t>(tokens.begin(), first + 1));
    EXPECT_EQ(stopped.text.find("<|end|>"), std::string::npos);
}

TEST_F(EngineTest, MoreLogprobsThanTokensAreAllOfThem) {
    Engine engine = make_engine({});
    Request all = request(0, 20, 3);
    all.sampling.logprobs = 1000;
    const Completion done = run(engine, {all}).at(0);
    EXPECT_EQ(done.num_top_logprobs, source_.config().vocab_size);
    EXPECT_EQ(std::ssize(done.top_logprobs), 3 * source_.config().vocab_size);
    EXPECT_NE(to_json(done, false).find("\"logprobs\": [{"), std::string::npos);
}

TEST_F(EngineTest, StepsDoNotAllocate) {
    for (const int64_t num_drafts : {0, 4}) {
        Engine engine = make_engine(
            {.scheduler = {.max_batch = 8, .max_batch_tokens = 64, .max_drafts = num_drafts}});
        for (int64_t i = 0; i < 8; ++i) engine.submit(request(i, 100, 600));
        for (int i = 0; i < 40; ++i) engine.step();
        ASSERT_EQ(engine.num_running(), 8);
        const int64_t before = num_allocations();
        for (int i = 0; i < 100; ++i) engine.step();
        EXPECT_EQ(num_allocations() - before, 0);
        ASSERT_EQ(engine.num_running(), 8);
        EXPECT_EQ(engine.num_accepted_drafts() > 0, num_drafts > 0);
    }
}

TEST_F(EngineTest, ChunksOfAPromptDoNotAllocate) {
    for (const int64_t expanded_bytes : {int64_t{0}, int64_t{64} << 20}) {
        Engine engine = make_engine({.scheduler = {.max_batch = 4, .max_batch_tokens = 32},
                                     .expanded_bytes = expanded_bytes});
        for (int64_t i = 0; i < 3; ++i) engine.submit(request(i, 20, 150));
        for (int i = 0; i < 10; ++i) engine.step();
        engine.submit(request(3, 800, 10));
        for (int i = 0; i < 5; ++i) engine.step();
        EXPECT_EQ(engine.prompt_room().num_held() > 0, expanded_bytes > 0);
        const int64_t before = num_allocations();
        for (int i = 0; i < 20; ++i) engine.step();
        EXPECT_EQ(num_allocations() - before, 0) << expanded_bytes;
        ASSERT_EQ(engine.num_running(), 4);
        EXPECT_LT(engine.num_generated_tokens(), 3 * 36);  // the prompt is still under way
    }
}

}  // namespace
}  // namespace ferry
