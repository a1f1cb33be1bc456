#include "layers/cuda/mla_plan.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

constexpr int64_t kNoLimit = 1 << 30;
constexpr DecodeGpu kHopper{227 << 10, 90}, kAmpere{163 << 10, 80}, kAda{99 << 10, 89};
constexpr DecodeShape kPublished{.heads = 128, .kv_lora = 512, .rope = 64, .cache = DType::bf16};

struct Sequences {
    Sequences(std::vector<std::pair<int64_t, int64_t>> position_and_rows) {
        int64_t row = 0;
        pages.resize(position_and_rows.size());
        for (size_t i = 0; i < position_and_rows.size(); ++i) {
            const auto& [position, rows] = position_and_rows[i];
            pages[i].assign(static_cast<size_t>(ceil_div(position + rows, kPageTokens)),
                            static_cast<int32_t>(i));
            list.push_back({.first_row = row,
                            .num_rows = rows,
                            .first_position = position,
                            .pages = pages[i]});
            row += rows;
        }
    }
    std::vector<std::vector<int32_t>> pages;
    std::vector<SequenceRows> list;
};

TEST(MlaPlan, ARowIsComputedByOneOfTwoLaunches) {
    const Sequences sequences({{100, 1}, {62, 3}, {-1, 1}});
    DecodePlan plan = plan_decode(kPublished, sequences.list, 0, kHopper, kNoLimit, 0, 64);
    EXPECT_TRUE(plan.grid.wgmma);
    EXPECT_FALSE(plan.chosen_grid.wgmma);
    EXPECT_EQ(plan.chosen_grid.row_tiles, 4);
    ASSERT_EQ(plan.rows.size(), 5u);
    ASSERT_EQ(plan.chosen_rows.size(), 5u);
    const int splits[] = {-1, 1, 1, -1, 0}, of_chosen[] = {1, -1, -1, 1, -1};
    const int keys[] = {64, 63, 64, 64, 0};
    for (size_t row = 0; row < 5; ++row) {
        EXPECT_EQ(plan.rows[row].num_splits, splits[row]) << row;
        EXPECT_EQ(plan.chosen_rows[row].num_splits, of_chosen[row]) << row;
        EXPECT_EQ(plan.chosen_rows[row].num_keys, keys[row]) << row;
    }
    // None chooses; one may, in a step that is repeated.
    EXPECT_TRUE(
        plan_decode(kPublished, sequences.list, 0, kHopper, kNoLimit, 0, 128).chosen_rows.empty());
    plan = plan_decode(kPublished, sequences.list, 0, kHopper, kNoLimit, 4096, 2048);
    EXPECT_EQ(plan.chosen_rows.size(), 5u);
    EXPECT_EQ(plan.waves.at(0).num_splits, 2);  // of 2048 keys
}

// 64 queries and two pages of 576 bf16, 64 x 64 probabilities, maxima of two warps and corrections.
TEST(MlaPlan, SharedMemoryByHand) {
    EXPECT_EQ(decode_shared_bytes(4, 2), 64 * 1152 + 2 * 73728 + 64 * 128 + 3 * 64 * 4);
    EXPECT_EQ(decode_shared_bytes(1, 1), 16 * 1152 + 73728 + 16 * 128 + 9 * 16 * 4);
    EXPECT_LE(decode_shared_bytes(4, 2), kHopper.shared_limit);
    EXPECT_LE(decode_shared_bytes(4, 1), kAmpere.shared_limit);
    EXPECT_GT(decode_shared_bytes(1, 2), kAmpere.shared_limit);
    // Latents of three pages, rotated parts of two, 128 columns of 64 queries, three statistics,
    // pages.
    EXPECT_EQ(decode_wgmma_shared_bytes(),
              3 * 64 * 1024 + 2 * 64 * 128 + 64 * 256 + 3 * 64 * 4 + 64 * 4 + 5 * 8);
    EXPECT_LE(decode_wgmma_shared_bytes(), kHopper.shared_limit);
}

TEST(MlaPlan, BlocksHaveAsManyHeadsAsThereAre) {
    for (const auto& [heads, row_tiles, blocks] : {std::tuple{1, 1, 1},
                                                   {16, 1, 1},
                                                   {17, 2, 1},
                                                   {32, 2, 1},
                                                   {33, 4, 1},
                                                   {64, 4, 1},
                                                   {65, 4, 2},
                                                   {128, 4, 2}}) {
        DecodeShape shape = kPublished;
        shape.heads = heads;
        const DecodeGrid grid = plan_decode(shape, {}, 0, kAmpere, kNoLimit).grid;
        EXPECT_EQ(grid.row_tiles, row_tiles) << heads;
        EXPECT_EQ(grid.head_blocks, blocks) << heads;
        EXPECT_EQ(grid.num_stages, 1);
        EXPECT_EQ(grid.shared_bytes, decode_shared_bytes(row_tiles, 1));
        EXPECT_FALSE(grid.wgmma);
        // More shared memory, but not Hopper's tensor cores.
        const DecodeGpu blackwell{kHopper.shared_limit, 100};
        EXPECT_EQ(plan_decode(shape, {}, 0, blackwell, kNoLimit).grid.num_stages, 2);
    }
}

TEST(MlaPlan, HopperHasAKernelOfItsOwn) {
    for (const auto& [heads, blocks] :
         {std::tuple{1, 1}, {16, 1}, {64, 1}, {65, 2}, {128, 2}, {129, 3}}) {
        DecodeShape shape = kPublished;
        shape.heads = heads;
        const DecodeGrid grid = plan_decode(shape, {}, 0, kHopper, kNoLimit).grid;
        EXPECT_TRUE(grid.wgmma) << heads;
        EXPECT_EQ(grid.head_blocks, blocks) << heads;
        EXPECT_EQ(grid.shared_bytes, decode_wgmma_shared_bytes());
    }
}

// What a CUDA graph is recorded with depends on the most keys and the number of rows only.
TEST(MlaPlan, LaunchesOfAFormDoNotDependOnTheRowsKeys) {
    constexpr int64_t kSplit = kCudaDecodeSplitTokens;
    const auto wave_at = [](std::vector<std::pair<int64_t, int64_t>> rows, int64_t most_keys,
                            int64_t slot_limit = kNoLimit) {
        const Sequences sequences(std::move(rows));
        return plan_decode(kPublished, sequences.list, 0, kHopper, slot_limit, most_keys)
            .waves.at(0);
    };
    const DecodeWave wave = wave_at({{2 * kSplit, 1}, {kSplit, 1}}, 4 * kSplit);
    EXPECT_EQ(wave.num_splits, 4);
    EXPECT_EQ(wave.num_slots, 8);
    for (const int64_t position : {int64_t{-1}, int64_t{5}, kSplit, 4 * kSplit - 1})
        EXPECT_EQ(wave_at({{position, 1}, {9, 1}}, 4 * kSplit), wave) << position;
    EXPECT_EQ(wave_at({{5, 1}, {9, 1}}, kSplit).num_slots, 0);
    // Not more than there is room for, as long as the rows fit.
    EXPECT_EQ(wave_at({{2 * kSplit, 1}, {kSplit, 1}}, 4 * kSplit, 5).num_slots, 5);
    EXPECT_EQ(decode_slots(std::vector<int64_t>{1, kSplit, kSplit + 1, 4 * kSplit}), 2 + 4);
    EXPECT_DEATH(wave_at({{4 * kSplit, 1}}, 4 * kSplit),
                 "waves of 5 splits in a step of 4096 keys");
    EXPECT_DEATH(wave_at({{2 * kSplit, 1}, {kSplit, 1}}, 4 * kSplit, 4), "2 waves");
}

TEST(MlaPlan, LongRowsHaveLongerSplits) {
    constexpr int64_t kSplit = kCudaDecodeSplitTokens;
    struct Case {
        int64_t keys, split, slots, most_splits;
    };
    for (const Case& c : {Case{kSplit, kSplit, 0, 1},
                          {kSplit + 1, kSplit, 2, 2},
                          {8 * kSplit, kSplit, 8, 8},
                          {8 * kSplit + 1, 2 * kSplit, 5, 8},
                          {16 * kSplit, 2 * kSplit, 8, 8},
                          {16 * kSplit + 1, 4 * kSplit, 5, 8},
                          {100 * kSplit, 4 * kSplit, 25, 25}}) {
        EXPECT_EQ(decode_split_keys(c.keys), c.split) << c.keys;
        EXPECT_EQ(decode_slots(std::vector{c.keys}), c.slots) << c.keys;
        // A form of rows that have as many keys at most takes shorter ones of more splits.
        const Sequences rows({{std::min(c.keys, 8 * kSplit) - 1, 1}});
        const DecodePlan plan = plan_decode(kPublished, rows.list, 0, kHopper, kNoLimit, c.keys);
        EXPECT_EQ(plan.waves.at(0).num_splits, c.most_splits) << c.keys;
    }
}

TEST(MlaPlan, ARowWithoutKeysFillsABatchUp) {
    const Sequences sequences({{70, 1}, {-1, 1}});
    const DecodePlan plan = plan_decode(kPublished, sequences.list, 0, kHopper, kNoLimit);
    ASSERT_EQ(plan.rows.size(), 2u);
    EXPECT_EQ(plan.rows[1].num_keys, 0);
    EXPECT_EQ(plan.rows[1].num_splits, 0);
    EXPECT_EQ(plan.pages.size(), 2u);
}

TEST(MlaPlan, OtherCachesTakeTheF32Kernel) {
    for (DecodeShape shape : {DecodeShape{8, 512, 64, DType::f32},
                              {8, 256, 64, DType::bf16},
                              {8, 512, 32, DType::bf16}}) {
        const DecodeGrid grid = plan_decode(shape, {}, 0, kHopper, kNoLimit).grid;
        EXPECT_EQ(grid.row_tiles, 0);
        EXPECT_EQ(grid.head_blocks, 8);
        EXPECT_EQ(grid.bf16_cache, shape.cache == DType::bf16);
        EXPECT_EQ(grid.shared_bytes, (2 * shape.kv_lora + shape.rope + 64) * 4);
    }
    // A block that fits nowhere.
    EXPECT_EQ(plan_decode(kPublished, {}, 0, kAda, kNoLimit).grid.row_tiles, 0);
}

TEST(MlaPlan, RowsAndPages) {
    const Sequences sequences({{0, 1}, {1023, 2}, {63, 1}});
    const DecodePlan plan = plan_decode(kPublished, sequences.list, 0, kHopper, kNoLimit);
    EXPECT_EQ(
        plan.rows,
        (std::vector<DecodeRow>{
            {.batch_row = 0, .num_keys = 1, .first_page = 0, .num_splits = 1, .first_slot = 0},
            {.batch_row = 1, .num_keys = 1024, .first_page = 1, .num_splits = 1, .first_slot = 0},
            {.batch_row = 2, .num_keys = 1025, .first_page = 1, .num_splits = 2, .first_slot = 0},
            {.batch_row = 3, .num_keys = 64, .first_page = 18, .num_splits = 1, .first_slot = 2}}));
    std::vector<int32_t> pages(19, 1);
    pages[0] = 0;
    pages[18] = 2;
    EXPECT_EQ(plan.pages, pages);
    EXPECT_EQ(plan.waves, (std::vector<DecodeWave>{
                              {.first_row = 0, .num_rows = 4, .num_splits = 2, .num_slots = 2}}));
    EXPECT_EQ(plan.most_slots(), 2);
    EXPECT_EQ(plan_decode(kPublished, std::span(sequences.list).subspan(1), 1, kHopper, kNoLimit)
                  .rows[0]
                  .batch_row,
              0);
}

TEST(MlaPlan, WavesHoldNoMoreSlotsThanAllowed) {
    const Sequences sequences({{5000, 1}, {3000, 1}, {100, 1}, {49999, 1}, {1999, 2}});
    const DecodePlan plan = plan_decode(kPublished, sequences.list, 0, kHopper, 8);
    EXPECT_EQ(plan.waves, (std::vector<DecodeWave>{
                              {.first_row = 0, .num_rows = 3, .num_splits = 5, .num_slots = 8},
                              {.first_row = 3, .num_rows = 1, .num_splits = 13, .num_slots = 13},
                              {.first_row = 4, .num_rows = 2, .num_splits = 2, .num_slots = 4}}));
    EXPECT_EQ(plan.rows[1].first_slot, 5);
    EXPECT_EQ(plan.rows[3].first_slot, 0);
    EXPECT_EQ(plan.rows[5].first_slot, 2);
    EXPECT_EQ(plan.describe(),
              "Hopper's tensor cores (230440 bytes of shared memory): 6 rows in 3 waves, 13 "
              "partial results");
}

TEST(MlaPlan, NoSequences) {
    const DecodePlan plan = plan_decode(kPublished, {}, 0, kHopper, kNoLimit);
    EXPECT_TRUE(plan.rows.empty());
    EXPECT_TRUE(plan.waves.empty());
    EXPECT_EQ(plan.most_slots(), 0);
}

}  // namespace
}  // namespace ferry
