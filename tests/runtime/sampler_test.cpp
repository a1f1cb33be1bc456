#include "runtime/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/random.h"
#include "tests/support/allocation_count.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Logits whose probabilities are 1/16, 4/16, 2/16, 8/16, 1/16.
std::vector<float> sixteenths() {
    std::vector<float> logits;
    for (const float weight : {1.0f, 4.0f, 2.0f, 8.0f, 1.0f}) logits.push_back(std::log(weight));
    return logits;
}

std::vector<float> random_logits(int64_t vocab_size, uint64_t seed, float scale = 3) {
    Random random(seed);
    std::vector<float> logits(static_cast<size_t>(vocab_size));
    for (float& logit : logits) logit = scale * random.next_normal();
    return logits;
}

int32_t sample_at(Sampler& sampler, const std::vector<float>& logits, const SamplingParams& params,
                  int64_t position) {
    const std::vector<int32_t> tokens(static_cast<size_t>(position), 0);
    return sampler.sample({.logits = logits, .params = params, .tokens = tokens}).token;
}

// How often each token is drawn at positions 0 .. num-1.
std::vector<int> draw_counts(const std::vector<float>& logits, const SamplingParams& params,
                             int num) {
    Sampler sampler(static_cast<int64_t>(logits.size()));
    std::vector<int> counts(logits.size());
    for (int position = 0; position < num; ++position)
        ++counts[static_cast<size_t>(sample_at(sampler, logits, params, position))];
    return counts;
}

std::set<size_t> kept_tokens(const std::vector<float>& logits, const SamplingParams& params) {
    const std::vector<int> counts = draw_counts(logits, params, 2000);
    std::set<size_t> kept;
    for (size_t id = 0; id < counts.size(); ++id)
        if (counts[id] > 0) kept.insert(id);
    return kept;
}

TEST(Sampler, GreedyTakesTheHighestAndTheLowerIdOfATie) {
    Sampler sampler(5);
    EXPECT_EQ(sample_at(sampler, {0, 3, -1, 3, 2}, {}, 0), 1);
    EXPECT_EQ(sample_at(sampler, {-kInfinity, -5, -kInfinity, -4, -9}, {}, 0), 3);
}

TEST(Sampler, GreedyFindsTheMaximumAtEveryPlace) {
    for (int32_t id = 0; id < 131; ++id) {
        std::vector<float> logits(131, -2.0f);
        logits[static_cast<size_t>(id)] = -1.5f;
        Sampler sampler(131);
        EXPECT_EQ(sample_at(sampler, logits, {}, 0), id);
    }
}

TEST(Sampler, RefusesLogitsWithoutAMaximum) {
    for (const float bad : {std::nanf(""), kInfinity}) {
        Sampler sampler(20);
        for (size_t place : {0u, 7u, 19u}) {
            std::vector<float> logits(20, 1.0f);
            logits[place] = bad;
            EXPECT_EQ(sample_at(sampler, logits, {}, 0), -1);
        }
    }
    Sampler sampler(20);
    EXPECT_EQ(sample_at(sampler, std::vector<float>(20, -kInfinity), {}, 0), -1);
}

TEST(Sampler, DrawsInProportion) {
    const std::vector<int> counts = draw_counts(sixteenths(), {.temperature = 1}, 16000);
    // Standard deviations are at most sqrt(16000 / 4) = 63.
    const int expected[] = {1000, 4000, 2000, 8000, 1000};
    for (size_t id = 0; id < 5; ++id) EXPECT_NEAR(counts[id], expected[id], 260) << id;
}

TEST(Sampler, TemperatureTwoTakesSquareRootsOfTheWeights) {
    const std::vector<int> counts = draw_counts(sixteenths(), {.temperature = 2}, 16000);
    const double roots[] = {1, 2, std::sqrt(2.0), std::sqrt(8.0), 1};
    const double total = std::accumulate(roots, roots + 5, 0.0);
    for (size_t id = 0; id < 5; ++id) EXPECT_NEAR(counts[id], 16000 * roots[id] / total, 260) << id;
}

TEST(Sampler, DrawIsTheDocumentedOne) {
    const SamplingParams params{.temperature = 1, .seed = 0x1122334455667788u};
    const uint64_t id_hash = 0xaabbccddeeff0011u;
    const std::vector<int32_t> tokens = {7, 7, 7, 1, 2};  // three of the prompt, two generated
    Sampler sampler(5);
    const auto logits = sixteenths();
    for (uint32_t sample = 0; sample < 50; ++sample) {
        const auto bits =
            philox4x32({2, sample, 0xeeff0011u, 0xaabbccddu}, {0x55667788u, 0x11223344u});
        const double u = (bits[0] + bits[1] * 0x1p-32) * 0x1p-32;
        const double bounds[] = {1 / 16.0, 5 / 16.0, 7 / 16.0, 15 / 16.0};
        const auto expected = std::upper_bound(bounds, bounds + 4, u) - bounds;
        EXPECT_EQ(sampler
                      .sample({.logits = logits,
                               .params = params,
                               .id_hash = id_hash,
                               .sample = sample,
                               .tokens = tokens,
                               .num_prompt_tokens = 3})
                      .token,
                  expected);
    }
}

TEST(Sampler, TopKKeepsTheBestAndTheLowerIdOfATie) {
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 1}), ElementsAre(3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 2}), ElementsAre(1, 3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 4}), ElementsAre(0, 1, 2, 3));
}

TEST(Sampler, TopPKeepsTokensWhileBetterOnesSumToLess) {
    // In rank order: 8, 4, 2, 1 (id 0), 1 (id 4) of 16.
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_p = 0.1}), ElementsAre(3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_p = 0.49}), ElementsAre(3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_p = 0.51}), ElementsAre(1, 3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_p = 0.76}), ElementsAre(1, 2, 3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_p = 0.9}),
                ElementsAre(0, 1, 2, 3));
}

TEST(Sampler, TopPIsAShareOfWhatTopKLeft) {
    // Of the two best, 8 and 4: 8 is two thirds.
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 2, .top_p = 0.6}),
                ElementsAre(3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 2, .top_p = 0.7}),
                ElementsAre(1, 3));
}

TEST(Sampler, MinPIsRelativeToTheBest) {
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .min_p = 0.6}), ElementsAre(3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .min_p = 0.45}), ElementsAre(1, 3));
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .min_p = 0.2}), ElementsAre(1, 2, 3));
    // After the temperature: 1/8 of the weight becomes 1/sqrt(8) = 0.354.
    EXPECT_EQ(kept_tokens(sixteenths(), {.temperature = 2, .min_p = 0.35}).size(), 5u);
    EXPECT_THAT(kept_tokens(sixteenths(), {.temperature = 1, .top_k = 3, .min_p = 0.45}),
                ElementsAre(1, 3));
}

TEST(Sampler, AFilterThatRemovesNothingChangesNothing) {
    const int64_t vocab_size = 300;
    const std::vector<float> logits = random_logits(vocab_size, 5);
    Sampler sampler(vocab_size);
    for (int64_t position = 0; position < 100; ++position) {
        const int32_t plain = sample_at(sampler, logits, {.temperature = 1}, position);
        for (const SamplingParams& params :
             {SamplingParams{.temperature = 1, .top_k = vocab_size},
              SamplingParams{.temperature = 1, .top_k = vocab_size - 1, .top_p = 1 - 1e-12},
              SamplingParams{.temperature = 1, .min_p = 1e-30}})
            EXPECT_EQ(sample_at(sampler, logits, params, position), plain);
    }
}

TEST(Sampler, KeepsWhatAFullSortKeeps) {
    const int64_t vocab_size = 1000;
    Sampler sampler(vocab_size);
    for (uint64_t seed = 0; seed < 20; ++seed) {
        std::vector<float> logits = random_logits(vocab_size, seed);
        for (float& logit : logits) logit = std::round(logit * 2) / 2;  // many ties
        std::vector<int32_t> order(static_cast<size_t>(vocab_size));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
        });
        const SamplingParams params{.logprobs = vocab_size};
        const SampledToken result = sampler.sample({.logits = logits, .params = params});
        ASSERT_EQ(result.top.size(), order.size());
        for (size_t i = 0; i < order.size(); ++i) ASSERT_EQ(result.top[i].token, order[i]) << i;
    }
}

TEST(Sampler, SeedIdAndSampleChangeTheDrawAndNothingElseDoes) {
    const std::vector<float> logits = random_logits(1000, 9, 1);
    const auto run = [&](uint64_t seed, uint64_t id_hash, int64_t sample) {
        Sampler sampler(1000);
        const SamplingParams params{.temperature = 1, .seed = seed};
        std::vector<int32_t> tokens;
        for (int i = 0; i < 8; ++i)
            tokens.push_back(sampler
                                 .sample({.logits = logits,
                                          .params = params,
                                          .id_hash = id_hash,
                                          .sample = sample,
                                          .tokens = tokens})
                                 .token);
        return tokens;
    };
    EXPECT_EQ(run(1, 2, 3), run(1, 2, 3));
    EXPECT_NE(run(1, 2, 3), run(4, 2, 3));
    EXPECT_NE(run(1, 2, 3), run(1, 4, 3));
    EXPECT_NE(run(1, 2, 3), run(1, 2, 4));
    const std::vector<int32_t> tokens = run(1, 2, 3);
    EXPECT_NE(tokens[0], tokens[1]);  // positions differ
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
    Sampler sampler(4);
    const SamplingParams params{.repetition_penalty = 2};
    const auto best = [&](std::vector<float> logits, std::vector<int32_t> tokens) {
        return sampler.sample({.logits = logits, .params = params, .tokens = tokens}).token;
    };
    EXPECT_EQ(best({3, 2, 1, 0}, {0}), 1);            // 3 / 2 < 2
    EXPECT_EQ(best({3, 1.4f, 1, 0}, {0, 0}), 0);      // twice there, divided once
    EXPECT_EQ(best({-1, -1.5f, -3, -3}, {0}), 1);     // -1 * 2 < -1.5
    EXPECT_EQ(best({3, 2, 1, 0}, {0, 1, 9, -1}), 0);  // ids outside the vocabulary are passed over
}

TEST(Sampler, BannedTokensAreNeverChosen) {
    Sampler sampler(4);
    const std::vector<float> logits = {1, 5, 4, 0};
    const std::vector<int32_t> banned = {1, 2};
    for (const double temperature : {0.0, 1.0})
        for (size_t position = 0; position < 100; ++position) {
            const std::vector<int32_t> tokens(position);
            const SamplingParams params{.temperature = temperature, .top_k = 3};
            const int32_t token =
                sampler
                    .sample(
                        {.logits = logits, .params = params, .tokens = tokens, .banned = banned})
                    .token;
            EXPECT_TRUE(token == 0 || token == 3) << token;
        }
}

TEST(Sampler, LogprobsAreThoseOfTheModel) {
    Sampler sampler(5);
    const auto logits = sixteenths();
    // Temperature, filters and bans do not change them.
    const std::vector<int32_t> banned = {3};
    const SamplingParams params{.temperature = 0.5, .top_k = 1, .logprobs = 3};
    const SampledToken result =
        sampler.sample({.logits = logits, .params = params, .banned = banned});
    EXPECT_EQ(result.token, 1);
    EXPECT_NEAR(result.logprob, std::log(4 / 16.0), 1e-6);
    ASSERT_EQ(result.top.size(), 3u);
    EXPECT_EQ(result.top[0].token, 3);
    EXPECT_NEAR(result.top[0].logprob, std::log(8 / 16.0), 1e-6);
    EXPECT_EQ(result.top[1].token, 1);
    EXPECT_EQ(result.top[1].logprob, result.logprob);
    EXPECT_EQ(result.top[2].token, 2);
    EXPECT_NEAR(result.top[2].logprob, std::log(2 / 16.0), 1e-6);
}

TEST(Sampler, LogprobsOfALargeRowSumToOne) {
    const int64_t vocab_size = 5000;
    Sampler sampler(vocab_size);
    const auto logits = random_logits(vocab_size, 3, 5);
    const SamplingParams params{.logprobs = vocab_size + 10};
    const SampledToken result = sampler.sample({.logits = logits, .params = params});
    ASSERT_EQ(result.top.size(), 5000u);  // no more than there are
    double reference_sum = 0, sum = 0;
    for (const float logit : logits) reference_sum += std::exp(static_cast<double>(logit));
    for (const TokenLogprob& entry : result.top) {
        sum += std::exp(static_cast<double>(entry.logprob));
        const double expected = logits[static_cast<size_t>(entry.token)] - std::log(reference_sum);
        ASSERT_NEAR(entry.logprob, expected, 4e-6 * std::max(1.0, std::abs(expected)));
    }
    EXPECT_NEAR(sum, 1, 1e-5);
}

TEST(Sampler, DoesNotAllocate) {
    const int64_t vocab_size = 3000;
    Sampler sampler(vocab_size);
    const auto logits = random_logits(vocab_size, 3);
    const std::vector<int32_t> tokens = {1, 2, 3}, banned = {5};
    const SamplingParams all[] = {{},
                                  {.temperature = 1},
                                  {.temperature = 1, .top_k = 50},
                                  {.temperature = 1, .top_p = 0.9999, .repetition_penalty = 1.2},
                                  {.temperature = 1, .top_k = 2999, .logprobs = 3000}};
    const int64_t before = num_allocations();
    for (const SamplingParams& params : all)
        sampler.sample({.logits = logits, .params = params, .tokens = tokens, .banned = banned});
    EXPECT_EQ(num_allocations(), before);
}

}  // namespace
}  // namespace ferry
