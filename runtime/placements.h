// [5] Where a run's experts are: in order, by a file, or balanced by what an earlier run recorded.
#pragma once
#include <string>
#include <vector>

#include "comm/layout.h"
#include "comm/world.h"
#include "layers/model_config.h"
#include "runtime/config.h"
#include "runtime/rank_fabric.h"

namespace ferry {

// Rows that every expert of every MoE layer received (`log.expert_load`). As a file:
//   {"first_layer": 3, "rows": [[120, 4, …], …]}     one list per MoE layer, by expert
struct ExpertLoad {
    int64_t first_layer = 0;
    std::vector<std::vector<int64_t>> rows;
};
std::string to_json(const ExpertLoad& load);
// `name` stands for the file. Throws Error(usage).
ExpertLoad parse_expert_load(const std::string& text, const std::string& name);
// What all ranks received since the start. Collective.
ExpertLoad gather_expert_load(RankFabric& fabric, const ModelConfig& model, World& world);

// A placement file: which experts each expert rank holds, for all MoE layers or for each of them:
//   {"experts_of_rank": [[0, 1, 2], [3, 0]]}    or    {"layers": [[[0, 1, 2], [3, 0]], …]}
// Throws Error(usage) when it does not fit.
std::vector<Placement> parse_placements(const std::string& text, const std::string& name,
                                        int num_experts, int num_moe_layers, int num_expert_ranks);

// One for all MoE layers or one for each, none for a model without them. The configuration's file
// is read by rank 0. Collective. Throws Error(usage).
std::vector<Placement> make_placements(const Config& config, const ModelConfig& model,
                                       const Layout& layout, World& world);

// By list of placements, the experts that `world_rank`'s node holds several copies of; none for a
// rank without experts.
std::vector<std::vector<SharedExpert>> experts_shared_on_node(
    const Layout& layout, const std::vector<Placement>& placements,
    const std::vector<int>& node_of_rank, int world_rank);

// Nodes over which the expert ranks are spread evenly and in order, else 1.
int num_expert_nodes(const Layout& layout, const std::vector<int>& node_of_rank);

}  // namespace ferry
