#include "runtime/micro_batches.h"

#include <gmock/gmock.h>

#include <numeric>

namespace ferry {
namespace {

using testing::ElementsAre;

// Prompts of 10 and 6 tokens, the first from position 3 on, and two generated tokens.
class MicroBatchesTest : public testing::Test {
  protected:
    MicroBatchesTest() {
        std::iota(tokens_.begin(), tokens_.end(), 100);
        std::iota(slots_.begin(), slots_.end(), 500);
        for (const auto* sequences : {&prompt_, &generated_})
            for (const SequenceRows& rows : *sequences)
                for (int64_t i = 0; i < rows.num_rows; ++i)
                    positions_[static_cast<size_t>(rows.first_row + i)] =
                        static_cast<int32_t>(rows.first_position + i);
    }

    StepBatch step(const std::vector<int32_t>& logit_rows) const {
        return {.tokens = tokens_,
                .positions = positions_,
                .slots = slots_,
                .prompt = prompt_,
                .generated = generated_,
                .logit_rows = logit_rows};
    }

    const std::vector<int32_t> pages_{0, 1};
    const std::vector<SequenceRows> prompt_{
        {.first_row = 0, .num_rows = 10, .first_position = 3, .pages = pages_},
        {.first_row = 10, .num_rows = 6, .first_position = 0, .pages = pages_}};
    const std::vector<SequenceRows> generated_{
        {.first_row = 16, .num_rows = 1, .first_position = 40, .pages = pages_},
        {.first_row = 17, .num_rows = 1, .first_position = 70, .pages = pages_}};
    std::vector<int32_t> tokens_ = std::vector<int32_t>(18), positions_ = std::vector<int32_t>(18);
    std::vector<int64_t> slots_ = std::vector<int64_t>(18);
};

void expect_rows(const SequenceRows& rows, int64_t first_row, int64_t num_rows,
                 int64_t first_position) {
    EXPECT_EQ(rows.first_row, first_row);
    EXPECT_EQ(rows.num_rows, num_rows);
    EXPECT_EQ(rows.first_position, first_position);
    EXPECT_EQ(rows.pages.size(), 2u);
}

TEST_F(MicroBatchesTest, WantedRowsAreABatchOfTheirOwn) {
    MicroBatches micro_batches(2, 32, 32, 8);
    const std::vector<int32_t> logit_rows{2, 7, 8, 9, 15, 16, 17};
    micro_batches.split(step(logit_rows));

    EXPECT_EQ(micro_batches.logit_rows(0).begin, 0);
    EXPECT_EQ(micro_batches.logit_rows(0).num, 3);
    const StepBatch& first = micro_batches.wanted(0);
    EXPECT_THAT(first.tokens, ElementsAre(102, 107, 108));
    EXPECT_THAT(first.positions, ElementsAre(5, 10, 11));
    ASSERT_EQ(first.prompt.size(), 2u);  // rows that do not follow each other
    expect_rows(first.prompt[0], 0, 1, 5);
    expect_rows(first.prompt[1], 1, 2, 10);
    EXPECT_TRUE(first.generated.empty());

    EXPECT_EQ(micro_batches.logit_rows(1).begin, 3);
    EXPECT_EQ(micro_batches.logit_rows(1).num, 4);
    const StepBatch& second = micro_batches.wanted(1);
    EXPECT_THAT(second.tokens, ElementsAre(109, 115, 116, 117));
    ASSERT_EQ(second.prompt.size(), 2u);  // neighbours of two sequences
    expect_rows(second.prompt[0], 0, 1, 12);
    expect_rows(second.prompt[1], 1, 1, 5);
    ASSERT_EQ(second.generated.size(), 2u);
    expect_rows(second.generated[0], 2, 1, 40);
    expect_rows(second.generated[1], 3, 1, 70);
}

TEST_F(MicroBatchesTest, WhereAllRowsAreWantedTheyAreTheMicroBatch) {
    MicroBatches micro_batches(3, 32, 32, 18);
    micro_batches.split(step({16, 17}));
    EXPECT_EQ(micro_batches.wanted(0).num_tokens(), 0);
    EXPECT_EQ(micro_batches.logit_rows(1).num, 0);
    EXPECT_EQ(micro_batches.wanted(2).num_tokens(), 2);

    std::vector<int32_t> every_row(18);
    std::iota(every_row.begin(), every_row.end(), 0);
    micro_batches.split(step(every_row));
    for (int i = 0; i < 3; ++i) EXPECT_EQ(&micro_batches.wanted(i), &micro_batches.batch(i));
    EXPECT_THAT(micro_batches.wanted(2).slots, ElementsAre(512, 513, 514, 515, 516, 517));
}

}  // namespace
}  // namespace ferry
