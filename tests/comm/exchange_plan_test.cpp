#include "comm/exchange_plan.h"

#include <gmock/gmock.h>

namespace ferry {
namespace {

TEST(ExchangePlan, ATokenTravelsOncePerRank) {
    // Experts 0-1 on rank 0, 2-3 on rank 1, 4 on rank 2.
    const Placement placement = contiguous_placement(5, 3);
    const std::vector<int32_t> experts{3, 0, 2, /**/ 1, 4, 0};
    const std::vector<float> weights{0.5f, 0.25f, 0.125f, 1, 2, 3};
    ExchangePlan plan(4, 3, 3);
    plan.build(
        {Tensor(experts.data(), DType::i32, {2, 3}), Tensor(weights.data(), DType::f32, {2, 3})},
        placement, 0);
    EXPECT_EQ(plan.num_rows(0), 2);
    EXPECT_EQ(plan.num_entries(0), 3);
    EXPECT_EQ(plan.num_rows(1), 1);
    EXPECT_EQ(plan.num_entries(1), 2);
    EXPECT_EQ(plan.num_rows(2), 1);
    EXPECT_EQ(plan.describe(),
              "to expert rank 0: 2 rows, 3 entries; token 0 -> slot 0 (k 1); token 1 -> slot 1 (k "
              "0), slot 0 (k 2)\n"
              "to expert rank 1: 1 rows, 2 entries; token 0 -> slot 1 (k 0), slot 0 (k 2)\n"
              "to expert rank 2: 1 rows, 1 entries; token 1 -> slot 0 (k 1)\n");
    const PlanItem& item = plan.items(1)[2];
    EXPECT_EQ(item.row, 1);
    EXPECT_EQ(item.entry, 2);
    EXPECT_FALSE(item.first);
    EXPECT_EQ(plan.weights(1)[2], 3);
}

TEST(ExchangePlan, NoTokens) {
    ExchangePlan plan(4, 2, 2);
    plan.build({}, contiguous_placement(4, 2), 0);
    EXPECT_EQ(plan.num_tokens(), 0);
    EXPECT_EQ(plan.num_rows(0), 0);
}

}  // namespace
}  // namespace ferry
