// Prompts that are computed in chunks stay expanded: a chunk expands its own rows, whatever came
// before it, and no bit of any completion depends on that.
#include <gtest/gtest.h>

#include <bit>

#include "layers/cpu/cpu_kernels.h"
#include "runtime/engine.h"
#include "runtime/hf_model.h"
#include "runtime/rank_model.h"
#include "tests/support/golden_models.h"

namespace ferry {
namespace {

constexpr int64_t kMaxTokens = 512;  // of one step

// Counts the rows of wkv_b's products, and those that are read back from the latent cache.
class CountingKernels final : public CpuKernels {
  public:
    explicit CountingKernels(const ModelConfig& c)
        : CpuKernels(2),
          rank_(c.kv_lora_rank),
          columns_(c.n_heads * (c.qk_nope_head_dim + c.v_head_dim)) {}

    void gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) override {
        if (w.spec.in == rank_ && w.spec.out == columns_) num_expanded += x.rows();
        CpuKernels::gemm(x, w, y, x_scales);
    }
    void read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                    const Tensor& out) override {
        num_read += out.rows();
        CpuKernels::read_cache(cache, pages, first, out);
    }

    int64_t num_expanded = 0, num_read = 0;

  private:
    int64_t rank_, columns_;
};

class ExpandedPrompts : public ::testing::Test {
  protected:
    explicit ExpandedPrompts(int num_micro_batches = 2)
        : source_(testing::golden_folder("models/v3")),
          kernels_(source_.config()),
          transport_(make_self_transport()),
          rank_(source_, kernels_, {},
                single_rank_fabric(source_.config(), kMaxTokens, num_micro_batches), *transport_) {}

    int64_t num_layers() const { return source_.config().n_layers; }
    // Memory in which so many positions of all layers, and no more, stay expanded.
    int64_t bytes_of(int64_t positions) const {
        return positions * num_layers() *
               AttentionWorker::expanded_unit_bytes(source_.config(), KvExpansion{});
    }
    Engine make_engine(const EngineOptions& options) {
        return Engine(kernels_, rank_.model(), rank_.fabric(), rank_.experts(), options, {},
                      std::nullopt);
    }
    Request request(int64_t index, int64_t prompt_length, int64_t max_tokens) const {
        Request made{.index = index,
                     .sample = 0,
                     .id = {fmt::format("r{}", index), false},
                     .prompt_tokens = {},
                     .sampling = {}};
        for (int64_t i = 0; i < prompt_length; ++i)
            made.prompt_tokens.push_back(
                static_cast<int32_t>((index * 37 + i * i % 101 + i / 3) % 256));
        made.sampling.max_tokens = max_tokens;
        made.sampling.logprobs = 1;
        return made;
    }
    static std::vector<Completion> run(Engine& engine, const std::vector<Request>& requests) {
        for (const Request& request : requests) engine.submit(request);
        while (engine.step()) {
        }
        std::vector<Completion> finished = engine.take_finished();
        std::ranges::sort(finished, {}, &Completion::index);
        return finished;
    }
    static void expect_same(const std::vector<Completion>& a, const std::vector<Completion>& b) {
        ASSERT_EQ(a.size(), b.size());
        for (size_t i = 0; i < a.size(); ++i) {
            ASSERT_EQ(a[i].finish_reason, FinishReason::length) << a[i].error;
            ASSERT_EQ(a[i].tokens, b[i].tokens) << i;
            ASSERT_EQ(a[i].logprobs.size(), b[i].logprobs.size());
            for (size_t j = 0; j < a[i].logprobs.size(); ++j)
                ASSERT_EQ(std::bit_cast<uint32_t>(a[i].logprobs[j]),
                          std::bit_cast<uint32_t>(b[i].logprobs[j]));
        }
    }
    // Each in an engine of its own, its prompt in one chunk.
    std::vector<Completion> alone(const std::vector<Request>& requests) {
        std::vector<Completion> all;
        for (const Request& one : requests) {
            Engine engine =
                make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = kMaxTokens}});
            all.push_back(run(engine, {one}).at(0));
        }
        return all;
    }

    HfModel source_;
    CountingKernels kernels_;
    std::unique_ptr<Transport> transport_;
    RankModel rank_;
};

class SharedPrefixes : public ExpandedPrompts {
  protected:
    static constexpr int64_t kPrefix = 192;

    SharedPrefixes() : ExpandedPrompts(1) {}

    // Begins as request 0 does.
    Request follower(int64_t index, int64_t rest) const {
        Request made = request(index, kPrefix + rest, 3);
        std::ranges::copy(request(0, kPrefix, 3).prompt_tokens, made.prompt_tokens.begin());
        return made;
    }
};

// The sum over the chunks is the prompt, in every layer, whatever their size.
TEST_F(ExpandedPrompts, AChunkExpandsItsOwnRows) {
    constexpr int64_t kPrompt = 300;
    const std::vector<Completion> expected = alone({request(0, kPrompt, 3)});
    for (const int64_t chunk : {1, 7, 64}) {
        SCOPED_TRACE(chunk);
        const auto rows_of = [&](int64_t expanded_bytes) {
            Engine engine = make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = chunk},
                                         .max_context = 320,
                                         .expanded_bytes = expanded_bytes});
            engine.submit(request(0, kPrompt, 3));
            const int64_t before = kernels_.num_expanded;
            for (bool more = true; more;) {
                const int64_t expanded = kernels_.num_expanded, read = kernels_.num_read;
                more = engine.step();
                if (expanded_bytes == 0) continue;
                EXPECT_EQ(kernels_.num_expanded - expanded,
                          engine.last_step().prompt * num_layers());
                EXPECT_EQ(kernels_.num_read - read, engine.last_step().prompt * num_layers());
                EXPECT_EQ(engine.prompt_room().num_held() > 0,
                          engine.num_generated_tokens() == 0 && more);
            }
            expect_same(engine.take_finished(), expected);
            return kernels_.num_expanded - before;
        };
        EXPECT_EQ(rows_of(bytes_of(kPrompt)), kPrompt * num_layers());
        const int64_t anew = rows_of(0);
        EXPECT_GT(anew, (kPrompt / chunk + 1) * kPrompt / 2);  // of any one layer
    }
}

// A step whose budget is taken by others that generate has little left for a prompt.
TEST_F(ExpandedPrompts, BesideRowsThatGenerate) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 7; ++i) requests.push_back(request(i, 5 + i, 200));
    requests.push_back(request(7, 150, 4));
    Engine engine = make_engine({.scheduler = {.max_batch = 8, .max_batch_tokens = 8},
                                 .max_context = 320,
                                 .expanded_bytes = bytes_of(320)});
    for (size_t i = 0; i < 7; ++i) engine.submit(requests[i]);
    while (engine.last_step().generated < 7) engine.step();
    engine.submit(requests[7]);
    const int64_t before = kernels_.num_expanded;
    int64_t steps = 0;
    do {
        engine.step();
        ++steps;
    } while (engine.prompt_room().num_held() > 0);
    EXPECT_EQ(steps, 150);
    EXPECT_EQ(kernels_.num_expanded - before, 150 * num_layers());
    expect_same(run(engine, {}), alone(requests));
}

TEST_F(ExpandedPrompts, APromptLongerThanTheRoomStaysExpandedInItsFirstLayers) {
    const std::vector<Request> requests{request(0, 300, 3)};
    const std::vector<Completion> expected = alone(requests);
    std::vector<int64_t> expanded;
    for (const int64_t positions : {0, 100, 200, 300, 400}) {
        Engine engine = make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = 30},
                                     .max_context = 320,
                                     .expanded_bytes = bytes_of(positions)});
        const int64_t before = kernels_.num_expanded;
        expect_same(run(engine, requests), expected);
        expanded.push_back(kernels_.num_expanded - before);
    }
    EXPECT_GT(expanded[0], expanded[1]);
    EXPECT_GT(expanded[1], expanded[2]);
    EXPECT_GE(expanded[2], expanded[3]);  // in the last layer only the last row attends
    EXPECT_EQ(expanded[3], 300 * num_layers());
    EXPECT_EQ(expanded[4], 300 * num_layers());
}

// Chunks of several prompts in every step, and room for one or two of them at a time.
TEST_F(ExpandedPrompts, PromptsCompeteForTheRoom) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 12; ++i) requests.push_back(request(i, 60 + i * 23 % 170, 6));
    const std::vector<Completion> expected = alone(requests);
    int64_t anew = 0;
    for (const int64_t positions : {0, 90, 250, 5000}) {
        SCOPED_TRACE(positions);
        Engine engine = make_engine(
            {.scheduler = {.max_batch = 8, .max_batch_tokens = 64, .max_prefill_chunk = 13},
             .max_context = 320,
             .expanded_bytes = bytes_of(positions)});
        const int64_t before = kernels_.num_expanded;
        expect_same(run(engine, requests), expected);
        const int64_t expanded = kernels_.num_expanded - before;
        EXPECT_EQ(engine.prompt_room().num_held(), 0);
        if (positions == 0)
            anew = expanded;
        else
            EXPECT_LT(expanded, anew);
        if (positions < 5000) continue;
        int64_t prompts = 0;
        for (const Request& one : requests)
            prompts += static_cast<int64_t>(one.prompt_tokens.size());
        EXPECT_EQ(expanded, prompts * num_layers());
    }
}

// A step is computed in two parts here. With or without a chunk that follows, and beside others.
TEST_F(ExpandedPrompts, PartsOfAStepExpandTheirOwnRows) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 5; ++i) requests.push_back(request(i, 40 + i * 67 % 190, 4));
    const std::vector<Completion> expected = alone(requests);
    int64_t prompts = 0;
    for (const Request& one : requests) prompts += std::ssize(one.prompt_tokens);
    for (const int64_t max_tokens : {kMaxTokens, int64_t{100}}) {
        SCOPED_TRACE(max_tokens);
        const auto rows_of = [&](int64_t expanded_bytes) {
            Engine engine =
                make_engine({.scheduler = {.max_batch = 5,
                                           .max_batch_tokens = max_tokens,
                                           .num_parts = rank_.fabric().num_micro_batches()},
                             .max_context = 320,
                             .expanded_bytes = expanded_bytes});
            const int64_t before = kernels_.num_expanded;
            expect_same(run(engine, requests), expected);
            EXPECT_EQ(engine.prompt_room().num_held(), 0);
            return kernels_.num_expanded - before;
        };
        EXPECT_EQ(rows_of(bytes_of(5000)), prompts * num_layers());
        EXPECT_GT(rows_of(0), prompts * (num_layers() - 1));
    }
}

// What the prefix cache has is expanded once, with the first chunk of those that go on from it.
TEST_F(ExpandedPrompts, AfterAPrefixThatIsFound) {
    Request first = request(0, 140, 2), second = request(1, 300, 3);
    std::copy(first.prompt_tokens.begin(), first.prompt_tokens.end(), second.prompt_tokens.begin());
    const std::vector<Completion> expected = alone({first, second});
    Engine engine = make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = 16},
                                 .max_context = 320,
                                 .expanded_bytes = bytes_of(320)});
    std::vector<Completion> got = run(engine, {first});
    engine.submit(second);
    const int64_t before = kernels_.num_expanded;
    engine.step();
    EXPECT_EQ(engine.last_step().prompt, 16);
    EXPECT_EQ(kernels_.num_expanded - before, (128 + 16) * num_layers());
    got.push_back(run(engine, {}).at(0));
    EXPECT_EQ(kernels_.num_expanded - before, 300 * num_layers());
    EXPECT_EQ(engine.num_prefix_hits(), 2);
    expect_same(got, expected);
}

// A prefix that one prompt after the other goes on from is expanded for the first of them.
TEST_F(SharedPrefixes, OnePromptAfterTheOther) {
    std::vector<Request> requests{request(0, kPrefix + 5, 3)};
    int64_t rest = 0;
    for (int64_t i = 1; i < 6; rest += 5 + i * 11, ++i) requests.push_back(follower(i, 5 + i * 11));
    const std::vector<Completion> expected = alone(requests);
    for (const int64_t positions : {0, 256}) {
        Engine engine = make_engine({.scheduler = {.max_batch = 2, .max_batch_tokens = kMaxTokens},
                                     .max_context = 320,
                                     .expanded_bytes = bytes_of(positions)});
        std::vector<Completion> got = run(engine, {requests[0]});
        const int64_t before = kernels_.num_expanded;
        for (size_t i = 1; i < requests.size(); ++i)
            got.push_back(run(engine, {requests[i]}).at(0));
        EXPECT_EQ(engine.num_prefix_hits(), 5 * kPrefix / kPageTokens);
        EXPECT_EQ(kernels_.num_expanded - before,
                  ((positions > 0 ? 1 : 5) * kPrefix + rest) * num_layers());
        expect_same(got, expected);
    }
}

// Nor does what was expanded stay for another prefix in the same pages, once they are forgotten.
TEST_F(SharedPrefixes, WhatIsForgottenIsExpandedAnew) {
    const auto of = [this](int64_t index, int64_t prefix) {
        Request made = request(index, kPrefix + 20, 3);
        std::ranges::copy(request(prefix, kPrefix, 3).prompt_tokens, made.prompt_tokens.begin());
        return made;
    };
    Engine engine = make_engine({.scheduler = {.max_batch = 1, .max_batch_tokens = kMaxTokens},
                                 .max_context = 320,
                                 .expanded_bytes = bytes_of(256)});
    for (const int64_t prefix : {50, 51}) {
        const std::vector<Request> requests{of(0, prefix), of(1, prefix), of(2, prefix)};
        const int64_t before = kernels_.num_expanded;
        std::vector<Completion> got = run(engine, requests);
        EXPECT_EQ(kernels_.num_expanded - before, (2 * kPrefix + 3 * 20) * num_layers());
        expect_same(got, alone(requests));
        engine.forget_prefixes();
    }
}

// The same in one step: where one has room, the others share what they expand anew.
TEST_F(SharedPrefixes, SeveralPromptsOfAStep) {
    std::vector<Request> requests{request(0, kPrefix + 5, 3)};
    int64_t rest = 0;
    for (int64_t i = 1; i < 7; ++i) {
        requests.push_back(follower(i, i == 4 ? 1 : i * 17));
        rest += i == 4 ? 1 : i * 17;
    }
    requests.push_back(request(7, 50, 3));  // another prefix
    rest += 50;
    const std::vector<Completion> expected = alone(requests);
    for (const int64_t positions : {0, 256}) {
        Engine engine = make_engine({.scheduler = {.max_batch = 16, .max_batch_tokens = kMaxTokens},
                                     .max_context = 320,
                                     .expanded_bytes = bytes_of(positions)});
        std::vector<Completion> got = run(engine, {requests[0]});
        const int64_t before = kernels_.num_expanded;
        for (size_t i = 1; i < requests.size(); ++i) engine.submit(requests[i]);
        engine.step();
        EXPECT_EQ(engine.last_step().prompt, rest);
        EXPECT_EQ(kernels_.num_expanded - before,
                  ((positions > 0 ? 2 : 1) * kPrefix + rest) * num_layers());
        for (Completion& completion : run(engine, {})) got.push_back(std::move(completion));
        expect_same(got, expected);
    }
}

// Prompts come and go, cut by chunks and micro-batches, with pages for half of them: no bit
// depends on whose place in the room a prompt takes over.
TEST_F(ExpandedPrompts, PrefixesInEveryWay) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 40; ++i) {
        requests.push_back(request(i, 70 + i * 53 % 150, 2 + i % 7));
        const std::vector<int32_t> from = request(i % 3, 128, 1).prompt_tokens;
        const auto shared = std::min(std::ssize(requests.back().prompt_tokens) - 1, i % 4 * 64);
        std::copy_n(from.begin(), std::min<int64_t>(shared, 128),
                    requests.back().prompt_tokens.begin());
    }
    const std::vector<Completion> expected = alone(requests);
    int64_t anew = 0;
    for (const int64_t positions : {0, 150, 300, 2000})
        for (const int64_t chunk : {40, 512}) {
            SCOPED_TRACE(fmt::format("{} positions, chunks of {}", positions, chunk));
            Engine engine =
                make_engine({.scheduler = {.max_batch = 6,
                                           .max_batch_tokens = 100,
                                           .max_prefill_chunk = chunk,
                                           .num_parts = rank_.fabric().num_micro_batches()},
                             .num_pages = 14,
                             .max_context = 320,
                             .expanded_bytes = bytes_of(positions)});
            const int64_t before = kernels_.num_expanded;
            expect_same(run(engine, requests), expected);
            EXPECT_GT(engine.num_prefix_hits(), 10);
            EXPECT_EQ(engine.num_preemptions() > 0, chunk == 40);
            EXPECT_EQ(engine.prompt_room().num_held(), 0);
            if (positions == 0) anew = kernels_.num_expanded - before;
            if (positions == 2000) {
                EXPECT_LT(kernels_.num_expanded - before, anew);
            }
        }
}

// Pages run out while prompts are between two chunks: who is sent back begins again, and gives its
// room to others.
TEST_F(ExpandedPrompts, PreemptionBetweenChunks) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 6; ++i) requests.push_back(request(i, 40 + i * 31 % 120, 150));
    const std::vector<Completion> expected = alone(requests);
    for (const bool share : {false, true})
        for (const int64_t positions : {0, 200, 1000}) {
            Engine engine = make_engine(
                {.scheduler = {.max_batch = 6, .max_batch_tokens = 24, .max_prefill_chunk = 7},
                 .num_pages = 8,
                 .max_context = 320,
                 .expanded_bytes = bytes_of(positions),
                 .share_prefixes = share});
            int64_t in_mid_prefill = 0, preemptions = 0;
            for (const Request& one : requests) engine.submit(one);
            int64_t held = 0;
            for (bool more = true; more;) {
                more = engine.step();
                // Nobody finished a prompt, yet there is less in the room.
                if (engine.num_preemptions() > preemptions &&
                    engine.prompt_room().num_held() < held)
                    ++in_mid_prefill;
                preemptions = engine.num_preemptions();
                held = engine.prompt_room().num_held();
            }
            std::vector<Completion> finished = engine.take_finished();
            std::ranges::sort(finished, {}, &Completion::index);
            expect_same(finished, expected);
            EXPECT_GT(preemptions, 2);
            EXPECT_EQ(in_mid_prefill > 0, positions > 0);
            EXPECT_EQ(engine.prompt_room().num_held(), 0);
        }
}

}  // namespace
}  // namespace ferry
