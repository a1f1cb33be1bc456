#include "runtime/placements.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;

TEST(ExpertLoad, ReadsWhatItWrites) {
    const ExpertLoad load{.first_layer = 3, .rows = {{120, 0, 4}, {7, 8, 9}}};
    const ExpertLoad read = parse_expert_load(to_json(load), "load.json");
    EXPECT_EQ(read.first_layer, 3);
    EXPECT_EQ(read.rows, load.rows);
}

TEST(ExpertLoad, RefusesOtherFiles) {
    EXPECT_ERROR(parse_expert_load("{\"rows\": []}", "load.json"), ErrorKind::usage,
                 "load.json: needs first_layer and rows");
    EXPECT_ERROR(parse_expert_load("{\"first_layer\": 1, \"rows\": [[-1]]}", "load.json"),
                 ErrorKind::usage, "load.json: rows: must be a list of lists");
    EXPECT_ERROR(parse_expert_load("[1", "load.json"), ErrorKind::usage, "load.json");
}

TEST(PlacementFile, OneForAllLayersOrOneForEach) {
    const auto one = parse_placements("{\"experts_of_rank\": [[2, 0], [1, 2]]}", "p", 3, 5, 2);
    ASSERT_EQ(one.size(), 1u);
    EXPECT_THAT(one[0].experts(0), ElementsAre(2, 0));
    EXPECT_EQ(one[0].copies(2).size(), 2u);
    const auto each = parse_placements("{\"layers\": [[[0], [1]], [[1], [0]]]}", "p", 2, 2, 2);
    ASSERT_EQ(each.size(), 2u);
    EXPECT_THAT(each[1].experts(0), ElementsAre(1));
}

TEST(PlacementFile, SaysWhatDoesNotFit) {
    EXPECT_ERROR(parse_placements("{\"experts_of_rank\": [[0, 1]]}", "p", 2, 1, 2),
                 ErrorKind::usage,
                 "p: experts_of_rank is for 1 expert ranks, but the layout has 2");
    EXPECT_ERROR(parse_placements("{\"layers\": [[[0], [1]]]}", "p", 2, 2, 2), ErrorKind::usage,
                 "p: layers: has 1 entries, but the model has 2 MoE layers");
    EXPECT_ERROR(parse_placements("{\"experts_of_rank\": [[0], [0]]}", "p", 2, 1, 2),
                 ErrorKind::usage, "no rank holds expert 1");
    EXPECT_ERROR(parse_placements("{}", "p", 2, 1, 2), ErrorKind::usage,
                 "p: needs experts_of_rank");
}

TEST(ExpertNodes, EvenAndInOrderOrElseOne) {
    const auto nodes = [](std::vector<int> node_of_rank, int attention, int expert) {
        const Layout layout = make_layout({.mode = LayoutMode::disaggregated,
                                           .attention_ranks = attention,
                                           .expert_ranks = expert,
                                           .tp_size = 1},
                                          node_of_rank);
        return num_expert_nodes(layout, node_of_rank);
    };
    EXPECT_EQ(nodes({0, 0, 1, 1, 2}, 1, 4), 1);  // 1, 2 and 1 of them
    EXPECT_EQ(nodes({0, 0, 0, 1, 1}, 1, 4), 2);
    EXPECT_EQ(nodes({0, 0, 1, 0, 1}, 1, 4), 1);  // not in order
    EXPECT_EQ(nodes({0, 1, 2}, 1, 2), 2);
}

}  // namespace
}  // namespace ferry
