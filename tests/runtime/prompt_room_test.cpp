#include "runtime/prompt_room.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/random.h"

namespace ferry {
namespace {

TEST(PromptRoom, HoldsAllLayersOfAPromptOrTheLeadingOnes) {
    PromptRoom room(100, 4, 8);
    ExpandedPrompt a = room.take(20), b = room.take(7), c = room.take(1);
    EXPECT_EQ(a.first_unit, 0);
    EXPECT_EQ(a.num_layers, 4);
    EXPECT_TRUE(a.holds(3));
    EXPECT_FALSE(a.holds(4));
    EXPECT_EQ(b.first_unit, 80);  // of the 20 that are left, 2 layers of 7
    EXPECT_EQ(b.num_layers, 2);
    EXPECT_FALSE(b.holds(2));
    EXPECT_EQ(c.first_unit, 94);
    EXPECT_EQ(room.num_held(), 80 + 14 + 4);
    ExpandedPrompt none = room.take(3);
    EXPECT_EQ(none.num_layers, 0);
    EXPECT_FALSE(none.holds(0));
    room.release(none);
    EXPECT_EQ(room.num_held(), 98);

    room.release(a);
    EXPECT_FALSE(a.holds(0));
    const ExpandedPrompt longer = room.take(30);
    EXPECT_EQ(longer.first_unit, 0);
    EXPECT_EQ(longer.num_layers, 2);
}

TEST(PromptRoom, TakesTheFirstGapThatFits) {
    PromptRoom room(70, 2, 8);
    std::vector<ExpandedPrompt> held;
    for (const int64_t positions : {5, 10, 5, 5}) held.push_back(room.take(positions));  // 50 units
    room.release(held[0]);
    room.release(held[2]);
    EXPECT_EQ(room.take(6).first_unit, 50);  // the gaps of 10 units are too small
    EXPECT_EQ(room.take(4).first_unit, 0);
    EXPECT_EQ(room.take(5).first_unit, 30);
}

TEST(PromptRoom, HasRoomForNobody) {
    PromptRoom empty(0, 3, 4), few(1000, 3, 1);
    EXPECT_EQ(empty.take(1).num_layers, 0);
    EXPECT_EQ(few.take(1).num_layers, 3);
    EXPECT_EQ(few.take(1).num_layers, 0);
}

TEST(PromptRoom, APrefixStaysForTheNextPrompt) {
    PromptRoom room(2000, 2, 8);  // 1000 positions
    const FoundPrefix prefix{.node = 5, .num_positions = 128};
    ExpandedPrompt first = room.take(128 + 30, prefix);
    EXPECT_EQ(first.num_positions, 128 + 64);  // some more than asked for
    EXPECT_EQ(first.num_expanded, 0);
    EXPECT_TRUE(room.has_in_use(prefix));
    first.num_expanded = first.num_positions;
    const int64_t unit = first.first_unit;
    room.release(first);
    EXPECT_FALSE(room.has_in_use(prefix));
    EXPECT_EQ(room.num_held(), 0);

    EXPECT_NE(room.take(50).first_unit, unit);
    EXPECT_NE(room.take(128 + 60, {.node = 6, .num_positions = 128}).first_unit, unit);
    ExpandedPrompt longer = room.take(128 + 65, prefix);
    EXPECT_NE(longer.first_unit, unit);
    EXPECT_EQ(longer.num_expanded, 0);
    const ExpandedPrompt next = room.take(128 + 64, prefix);
    EXPECT_EQ(next.first_unit, unit);
    EXPECT_EQ(next.num_expanded, 128);
    EXPECT_EQ(room.take(128 + 1, prefix).num_expanded, 0);  // each has a place of its own
}

TEST(PromptRoom, OfPrefixesThatNobodyUsesTheOldestGoFirst) {
    PromptRoom room(3 * 128, 1, 8);
    std::vector<ExpandedPrompt> used;
    for (int64_t node = 1; node <= 3; ++node)
        used.push_back(room.take(100, {.node = node, .num_positions = 64}));
    EXPECT_EQ(room.take(1).num_layers, 0);
    for (const size_t i : {1, 0, 2}) {
        used[i].num_expanded = i == 2 ? 63 : 100;  // the last one's prefix was not
        room.release(used[i]);
    }
    EXPECT_EQ(room.take(100).first_unit, 256);
    EXPECT_EQ(room.take(100).first_unit, 128);
    EXPECT_EQ(room.take(100, {.node = 1, .num_positions = 64}).num_expanded, 64);
}

TEST(PromptRoom, APrefixMovesWhereMoreLayersFit) {
    PromptRoom room(4 * 128 + 200, 4, 8);
    const FoundPrefix prefix{.node = 1, .num_positions = 64};
    ExpandedPrompt other = room.take(128), some = room.take(100, prefix);
    EXPECT_EQ(some.num_layers, 1);
    some.num_expanded = 100;
    room.release(some);
    some = room.take(100, prefix);
    EXPECT_EQ(some.num_expanded, 64);  // one layer is better than none
    EXPECT_EQ(some.num_layers, 1);
    room.release(some);
    room.release(other);
    some = room.take(100, prefix);
    EXPECT_EQ(some.num_layers, 4);
    EXPECT_EQ(some.num_expanded, 0);
}

TEST(PromptRoom, APromptThatNeedsAllOfItFindsIt) {
    PromptRoom room(600, 2, 8);
    ExpandedPrompt first = room.take(290, {.node = 1, .num_positions = 64});
    EXPECT_EQ(first.num_positions, 290);  // rounded up it would not fit
    first.num_expanded = 290;
    room.release(first);
    const ExpandedPrompt all = room.take(300);
    EXPECT_EQ(all.num_layers, 2);
    EXPECT_EQ(all.first_unit, 0);
}

TEST(PromptRoom, NoTwoPromptsShareAUnit) {
    constexpr int64_t kUnits = 900;
    Random random(1);
    PromptRoom room(kUnits, 3, 6);
    std::vector<ExpandedPrompt> held;
    int64_t num_taken = 0, num_found = 0;
    for (int step = 0; step < 5000; ++step) {
        if (!held.empty() && random.next_u32() % 2 == 0) {
            const auto leaves =
                held.begin() + static_cast<std::ptrdiff_t>(random.next_u32() % held.size());
            if (random.next_u32() % 2 == 0) leaves->num_expanded = leaves->num_positions;
            room.release(*leaves);
            held.erase(leaves);
            continue;
        }
        const int64_t prefix = random.next_u32() % 20;
        const ExpandedPrompt taken =
            room.take(prefix + 1 + random.next_u32() % 40,
                      {.node = random.next_u32() % 3 * (prefix + 1), .num_positions = prefix});
        if (taken.num_layers == 0) continue;
        ++num_taken;
        if (taken.num_expanded > 0) ++num_found;
        ASSERT_GE(taken.first_unit, 0);
        ASSERT_LE(taken.first_unit + taken.num_units(), kUnits);
        int64_t units = taken.num_units();
        for (const ExpandedPrompt& other : held) {
            ASSERT_TRUE(other.first_unit + other.num_units() <= taken.first_unit ||
                        taken.first_unit + taken.num_units() <= other.first_unit);
            units += other.num_units();
        }
        held.push_back(taken);
        ASSERT_EQ(room.num_held(), units);
    }
    EXPECT_GT(num_taken, 1000);
    EXPECT_GT(num_found, 50);
}

}  // namespace
}  // namespace ferry
