#include "comm/placement.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int> flat(const Placement& placement) {
    std::vector<int> all;
    for (int rank = 0; rank < placement.num_ranks(); ++rank)
        all.insert(all.end(), placement.experts(rank).begin(), placement.experts(rank).end());
    return all;
}

TEST(Placement, ContiguousRangesWhenCountsDoNotDivide) {
    const Placement placement = contiguous_placement(8, 3);
    EXPECT_THAT(placement.experts(0), ElementsAre(0, 1, 2));
    EXPECT_THAT(placement.experts(1), ElementsAre(3, 4, 5));
    EXPECT_THAT(placement.experts(2), ElementsAre(6, 7));
    EXPECT_EQ(placement.copies(6)[0], (ExpertCopy{2, 0}));
    EXPECT_EQ(placement.max_slots(), 3);
    EXPECT_EQ(placement.describe(),
              "expert rank 0: experts 0-2 (3)\nexpert rank 1: experts 3-5 (3)\n"
              "expert rank 2: experts 6-7 (2)\n");
}

TEST(Placement, MoreRanksThanExpertsLeavesRanksEmpty) {
    const Placement placement = contiguous_placement(2, 3);
    EXPECT_TRUE(placement.experts(2).empty());
    EXPECT_THAT(placement.describe(), HasSubstr("expert rank 2: experts none (0)"));
}

TEST(Placement, ListsAreChecked) {
    EXPECT_THROW(Placement(2, {{0}, {2}}), Error);
    EXPECT_THROW(Placement(3, {{0}, {2}}), Error);
    const Placement placement(3, {{0, 2}, {1, 2}});
    EXPECT_EQ(placement.num_copies(), 4);
    EXPECT_THAT(placement.copies(2), ElementsAre(ExpertCopy{0, 1}, ExpertCopy{1, 1}));
}

TEST(Placement, CopiesShareTokensAndDependOnTokenOnly) {
    const Placement placement(1, {{0}, {0}, {0}});
    std::vector<int> served(3, 0);
    for (int token = 0; token < 30; ++token) ++served[placement.copy_for(0, 5, token).expert_rank];
    EXPECT_THAT(served, ElementsAre(10, 10, 10));
    EXPECT_EQ(placement.copy_for(0, 1, 7), placement.copy_for(0, 1, 7));
}

// The worked example of EPLB's README: two layers of 12 experts in 4 groups, 16 copies on 2 nodes
// of 4 ranks; the two lists are its printed result.
TEST(Placement, BalancedReproducesTheExampleOfEplb) {
    const BalanceOptions options{
        .num_ranks = 8, .num_redundant = 4, .num_groups = 4, .num_nodes = 2};
    const std::vector<double> layer0{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
    EXPECT_THAT(flat(balanced_placement(layer0, options)),
                ElementsAre(5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1));
    const std::vector<double> layer1{20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
    EXPECT_THAT(flat(balanced_placement(layer1, options)),
                ElementsAre(7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1));
}

TEST(Placement, BalancedWithoutGroupsAndWithCountsThatDoNotDivide) {
    const std::vector<double> loads{100, 1, 1, 1, 1};  // expert 0 gets both extra copies
    const Placement placement = balanced_placement(loads, {.num_ranks = 3, .num_redundant = 2});
    EXPECT_EQ(placement.num_copies(), 7);
    EXPECT_EQ(placement.copies(0).size(), 3u);
    // One copy of the hot expert on each rank.
    EXPECT_EQ(placement.copies(0)[0].expert_rank, 0);
    EXPECT_EQ(placement.copies(0)[1].expert_rank, 1);
    EXPECT_EQ(placement.copies(0)[2].expert_rank, 2);
}

TEST(Placement, ExpertsWithSeveralCopiesOnANodeAreShared) {
    // Ranks 0 and 1 are one node, ranks 2 and 3 another. Expert 3 is twice on rank 2.
    const Placement placement(4, {{0, 1}, {1, 2}, {0, 3, 3}, {2, 1}});
    const std::vector<int> first{0, 1}, second{2, 3}, all{0, 1, 2, 3};
    EXPECT_THAT(shared_experts(placement, first, 0), ElementsAre(SharedExpert{1, 2, 0}));
    EXPECT_THAT(shared_experts(placement, first, 1), ElementsAre(SharedExpert{1, 2, 1}));
    EXPECT_THAT(shared_experts(placement, second, 2), ElementsAre(SharedExpert{3, 1, 0}));
    EXPECT_THAT(shared_experts(placement, second, 3), ElementsAre(SharedExpert{3, 1, -1}));
    EXPECT_THAT(shared_experts(placement, all, 3),
                ElementsAre(SharedExpert{0, 2, -1}, SharedExpert{1, 3, 2}, SharedExpert{2, 2, 1},
                            SharedExpert{3, 1, -1}));
}

}  // namespace
}  // namespace ferry
