#include <gtest/gtest.h>

#include <cmath>

#include "runtime/draft_rounds.h"

namespace ferry {
namespace {

uint8_t class_of(double probability) {
    return DraftRecord::class_of(static_cast<float>(std::log(probability)));
}

TEST(DraftRecord, ClassesArePartsOfAProbability) {
    EXPECT_EQ(class_of(1), 0);
    EXPECT_EQ(DraftRecord::class_of(1e-6f), 0);  // of rounding
    EXPECT_EQ(class_of(0.72), 0);
    EXPECT_EQ(class_of(0.7), 1);
    EXPECT_EQ(class_of(0.49), 2);
    EXPECT_EQ(class_of(0.24), 4);
    EXPECT_EQ(class_of(1e-20), 15);
    EXPECT_EQ(DraftRecord::class_of(-INFINITY), 15);
    EXPECT_EQ(DraftRecord::class_of(NAN), 15);
}

// Of 1000 drafts in two classes of which one is right two times in three, the other one time in
// eight; then those are always right.
TEST(DraftRecord, TriesWhatHasBeenRightOftenEnough) {
    DraftRecord record(0.4);
    const auto draft = [&](uint8_t draft_class, bool right) {
        const bool tried = record.is_worth(draft_class);
        if (tried) record.learn(draft_class, right);
        return tried ? 1 : 0;
    };
    int num_often = 0, num_seldom = 0, num_later = 0;
    for (int i = 0; i < 1000; ++i) {
        num_often += draft(0, i % 3 != 0);
        num_seldom += draft(3, i % 8 == 0);
    }
    EXPECT_EQ(num_often, 1000);
    EXPECT_GT(num_seldom, 1000 / 16);
    EXPECT_LT(num_seldom, 100);
    for (int i = 0; i < 2000; ++i) num_later += draft(3, true);
    EXPECT_GT(num_later, 1000);
    EXPECT_EQ(draft(7, false), 1);  // nothing is known of it
}

TEST(DraftRecord, TriesAllIfAskedTo) {
    DraftRecord record(0);
    for (int i = 0; i < 100; ++i) {
        EXPECT_TRUE(record.is_worth(9));
        record.learn(9, false);
    }
}

}  // namespace
}  // namespace ferry
