#include "runtime/prompt_lookup.h"

#include <gtest/gtest.h>

#include <numeric>

namespace ferry {
namespace {

using Tokens = std::vector<int32_t>;

// What is drafted behind `tokens`.
Tokens drafts(const PromptLookup& lookup, Tokens tokens, int64_t max) {
    const size_t size = tokens.size();
    const int64_t num = lookup.extend(tokens, max);
    EXPECT_EQ(tokens.size(), size + static_cast<size_t>(num));
    return {tokens.begin() + static_cast<int64_t>(size), tokens.end()};
}

TEST(PromptLookup, GoesOnAsTheLastTokensDidBefore) {
    const PromptLookup lookup;
    EXPECT_EQ(drafts(lookup, {7, 1, 2, 3, 4, 5, 9, 1, 2}, 3), (Tokens{3, 4, 5}));
    EXPECT_EQ(drafts(lookup, {7, 1, 2, 3, 4, 5, 9, 1, 2}, 1), (Tokens{3}));
    EXPECT_EQ(drafts(lookup, {1, 2, 3}, 3), Tokens{});
    EXPECT_EQ(drafts(lookup, {5, 1, 6, 1}, 3), Tokens{});  // one token alone says little
    EXPECT_EQ(drafts(lookup, {}, 3), Tokens{});
    EXPECT_EQ(drafts(lookup, {4}, 3), Tokens{});
    EXPECT_EQ(drafts(lookup, {1, 2, 1, 2}, 0), Tokens{});
}

TEST(PromptLookup, PrefersTheLongestMatchThenTheLast) {
    const PromptLookup lookup;
    EXPECT_EQ(drafts(lookup, {1, 2, 3, 10, 8, 2, 3, 11, 1, 2, 3}, 1), (Tokens{10}));
    EXPECT_EQ(drafts(lookup, {9, 8, 2, 3, 10, 7, 2, 3, 11, 8, 2, 3}, 1), (Tokens{10}));
    EXPECT_EQ(drafts(lookup, {2, 3, 10, 7, 2, 3, 11, 8, 2, 3}, 1), (Tokens{11}));
}

TEST(PromptLookup, ATextThatRepeatsItselfGoesOnWithItsDrafts) {
    const PromptLookup lookup;
    EXPECT_EQ(drafts(lookup, {5, 6, 7, 5, 6, 7}, 8), (Tokens{5, 6, 7, 5, 6, 7, 5, 6}));
    EXPECT_EQ(drafts(lookup, {3, 3, 3}, 4), (Tokens{3, 3, 3, 3}));
}

TEST(PromptLookup, TriesAsManyAsWereRight) {
    const Tokens text{5, 6, 7, 5, 6, 7};
    PromptLookup lookup;
    lookup.learn(8, 3);
    EXPECT_EQ(drafts(lookup, text, 8).size(), 3u);
    lookup.learn(3, 3);
    EXPECT_EQ(drafts(lookup, text, 8).size(), 6u);
    lookup.learn(6, 0);
    EXPECT_EQ(drafts(lookup, text, 8).size(), 1u);
    lookup.learn(0, 0);  // there was no room for it
    EXPECT_EQ(drafts(lookup, text, 8).size(), 1u);
    for (int i = 0; i < 5; ++i) lookup.learn(1, 1);
    EXPECT_EQ(drafts(lookup, text, 8).size(), 8u);
}

TEST(PromptLookup, AfterMissesTheMatchHasToBeLonger) {
    const Tokens two{1, 2, 3, 9, 1, 2}, four{1, 2, 3, 4, 5, 9, 1, 2, 3, 4};
    PromptLookup lookup;
    lookup.learn(1, 0);
    lookup.learn(1, 0);
    EXPECT_EQ(drafts(lookup, two, 2), Tokens{});
    EXPECT_EQ(drafts(lookup, four, 2), (Tokens{5}));
    lookup.learn(1, 1);
    EXPECT_EQ(drafts(lookup, two, 2), (Tokens{3, 9}));
    for (int i = 0; i < 1000; ++i) lookup.learn(1, 0);
    Tokens twice(40);
    std::iota(twice.begin(), twice.begin() + 20, 0);
    std::iota(twice.begin() + 20, twice.end(), 0);
    twice.resize(39);
    EXPECT_EQ(drafts(lookup, twice, 2), (Tokens{19}));  // a long one is always tried
}

}  // namespace
}  // namespace ferry
