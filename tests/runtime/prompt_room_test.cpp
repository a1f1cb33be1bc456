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

TEST(PromptRoom, NoTwoPromptsShareAUnit) {
    constexpr int64_t kUnits = 300;
    Random random(1);
    PromptRoom room(kUnits, 3, 6);
    std::vector<ExpandedPrompt> held;
    int64_t num_taken = 0;
    for (int step = 0; step < 5000; ++step) {
        if (!held.empty() && random.next_u32() % 2 == 0) {
            const auto leaves =
                held.begin() + static_cast<std::ptrdiff_t>(random.next_u32() % held.size());
            room.release(*leaves);
            held.erase(leaves);
        }
        const ExpandedPrompt taken = room.take(1 + random.next_u32() % 60);
        if (taken.num_layers == 0) continue;
        ++num_taken;
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
}

}  // namespace
}  // namespace ferry
