#include "comm/layout.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string message_of(const LayoutOptions& options, std::vector<int> nodes) {
    try {
        make_layout(options, nodes);
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::usage);
        return error.what();
    }
    return "";
}

TEST(Layout, DisaggregatedNumbersAttentionRanksFirst) {
    const Layout layout =
        make_layout({.attention_ranks = 2, .expert_ranks = 3}, std::vector<int>{0, 0, 0, 1, 1});
    EXPECT_EQ(layout.attention_rank(1), 1);
    EXPECT_EQ(layout.attention_rank(2), -1);
    EXPECT_EQ(layout.expert_rank(1), -1);
    EXPECT_EQ(layout.expert_rank(4), 2);
    EXPECT_EQ(layout.world_rank_of_expert(2), 4);
    EXPECT_EQ(layout.tp_size(), 2);  // both attention ranks share node 0
}

TEST(Layout, ARoleThatIsLeftOutTakesTheOtherRanks) {
    const std::vector<int> nodes{0, 0, 0, 1, 1};
    EXPECT_EQ(make_layout({.attention_ranks = 2}, nodes).num_expert(), 3);
    EXPECT_EQ(make_layout({.expert_ranks = 1}, nodes).num_attention(), 4);
}

TEST(Layout, ColocatedRanksAreBoth) {
    const Layout layout = make_layout({.mode = LayoutMode::colocated}, std::vector<int>(7, 0));
    EXPECT_EQ(layout.num_attention(), 7);
    EXPECT_EQ(layout.num_expert(), 7);
    EXPECT_EQ(layout.attention_rank(6), 6);
    EXPECT_EQ(layout.expert_rank(6), 6);
    EXPECT_EQ(layout.tp_size(), 7);
}

TEST(Layout, DefaultTpGroupsStayOnANode) {
    const LayoutOptions options{.mode = LayoutMode::colocated};
    EXPECT_EQ(make_layout(options, std::vector<int>{0, 0, 0, 0, 1, 1}).tp_size(), 2);
    EXPECT_EQ(make_layout(options, std::vector<int>{0, 0, 0, 1, 1}).tp_size(), 1);
    EXPECT_EQ(make_layout(options, std::vector<int>{0, 1, 0, 1}).tp_size(), 1);  // scattered
    EXPECT_EQ(make_layout(options, std::vector<int>{0, 0, 0, 1, 1, 1}).tp_size(), 3);
}

TEST(Layout, TpGroupsAreRangesOfAttentionRanks) {
    const Layout layout = make_layout({.attention_ranks = 6, .expert_ranks = 1, .tp_size = 3},
                                      std::vector<int>(7, 0));
    EXPECT_EQ(layout.tp_group(4), 1);
    EXPECT_EQ(layout.tp_rank(4), 1);
    EXPECT_THAT(layout.tp_members(4), ElementsAre(3, 4, 5));
}

TEST(Layout, ErrorsSayWhatWouldFit) {
    EXPECT_THAT(message_of({.attention_ranks = 2, .expert_ranks = 4}, {0, 0, 0, 0}),
                HasSubstr("2 attention + 4 expert ranks = 6, but this world has 4 ranks; start 6 "
                          "ranks (mpirun -n 6), or set expert_ranks: 2"));
    EXPECT_THAT(message_of({.attention_ranks = 1, .expert_ranks = 1}, {0}),
                HasSubstr("or set mode: colocated"));
    EXPECT_THAT(message_of({.attention_ranks = 0, .expert_ranks = 1}, {0}),
                HasSubstr("at least one rank of each role"));
    EXPECT_THAT(
        message_of({.attention_ranks = 6, .expert_ranks = 1, .tp_size = 4}, std::vector<int>(7, 0)),
        HasSubstr("tp_size 4 does not divide 6 attention ranks; these do: 1, 2, 3, 6"));
    EXPECT_THAT(message_of({.expert_ranks = 9}, {0, 0}),
                HasSubstr("not 0 attention and 9 expert ranks in a world of 2"));
    EXPECT_THAT(message_of({.mode = LayoutMode::colocated, .attention_ranks = 3}, {0, 0}),
                HasSubstr("mpirun -n 3"));
    EXPECT_THAT(message_of({.mode = LayoutMode::colocated, .expert_ranks = 3}, {0, 0}),
                HasSubstr("expert_ranks is 3 and this world has 2 ranks"));
}

TEST(Layout, PrintsATable) {
    const Layout layout =
        make_layout({.attention_ranks = 1, .expert_ranks = 2}, std::vector<int>{0, 0, 1});
    const std::vector<std::string> hosts{"node1", "node2"};
    const Placement placement = contiguous_placement(5, 2);
    const std::string table = layout.describe(hosts, {&placement, 1});
    EXPECT_THAT(table, HasSubstr("disaggregated layout: 1 attention, 2 expert ranks of 3"));
    EXPECT_THAT(table,
                HasSubstr("1     node1             -               0       -    -        0-2\n"));
    EXPECT_THAT(table,
                HasSubstr("2     node2             -               1       -    -        3-4\n"));
    EXPECT_THAT(table,
                HasSubstr("0     node1             0 (0.0)         -       -    -        -\n"));
    const std::vector<RankPlace> places{{"0", "0-7"}, {"1", "8-15"}, {"-", "0-3,8"}};
    const std::string placed = layout.describe({}, {&placement, 1}, places);
    EXPECT_THAT(placed,
                HasSubstr("1     0                 -               0       1    8-15     0-2\n"));
    EXPECT_THAT(placed,
                HasSubstr("2     1                 -               1       -    0-3,8    3-4\n"));

    const Placement copies(5, {{4, 0, 1}, {0, 3, 2}});
    const std::string copied = layout.describe(hosts, {&copies, 1});
    EXPECT_THAT(copied, HasSubstr("        0-1, 4\n"));
    EXPECT_THAT(copied, HasSubstr("        2-3 + copies of 0\n"));
    const std::vector<Placement> by_layer{placement, copies};
    EXPECT_THAT(layout.describe(hosts, by_layer), HasSubstr("        3 in a layer\n"));
    EXPECT_THAT(layout.describe(hosts, by_layer), HasSubstr("        2 to 3 in a layer\n"));
}

}  // namespace
}  // namespace ferry
