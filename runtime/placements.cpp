#include "runtime/placements.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "runtime/input_file.h"
#include "runtime/json_text.h"

namespace ferry {
namespace {

constexpr int64_t kMaxFileBytes = 256 << 20;

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
    throw Error(ErrorKind::usage, "{}: {}", name, what);
}

template <typename Number>
std::vector<std::vector<Number>> read_lists(const Json& json, const std::string& name,
                                            const char* what) {
    const auto is_list_of_numbers = [](const Json& list) {
        return list.is_array() && std::all_of(list.begin(), list.end(), [](const Json& number) {
                   return number.is_number_integer() && number.get<int64_t>() >= 0 &&
                          number.get<double>() <= 0x1p53;
               });
    };
    if (!json.is_array() || !std::all_of(json.begin(), json.end(), is_list_of_numbers))
        refuse(name, fmt::format("{}: must be a list of lists of numbers, none below 0", what));
    return json.get<std::vector<std::vector<Number>>>();
}

Json parse(const std::string& text, const std::string& name) try {
    Json json = parse_json(text, name);
    if (!json.is_object()) refuse(name, "must be an object");
    return json;
} catch (const Error& error) {
    throw Error(ErrorKind::usage, error.what());
}

// Rank 0 reads, so that all ranks see the same.
std::string read_on_rank_0(const std::string& path, World& world) {
    return world.broadcast(
        world.rank() == 0 ? read_text_file(path, kMaxFileBytes, ErrorKind::input) : "", 0);
}

std::vector<Placement> balance(const ExpertLoad& load, const Config& config,
                               const ModelConfig& model, const Layout& layout, int num_nodes) {
    std::vector<Placement> placements;
    for (const std::vector<int64_t>& rows : load.rows) {
        const std::vector<double> loads(rows.begin(), rows.end());
        placements.push_back(balanced_placement(
            loads, {.num_ranks = layout.num_expert(),
                    .num_redundant = static_cast<int>(config.layout.redundant_experts),
                    .num_groups = static_cast<int>(std::max<int64_t>(1, model.n_expert_groups)),
                    .num_nodes = num_nodes}));
    }
    return placements;
}

}  // namespace

std::string to_json(const ExpertLoad& load) {
    std::string text = fmt::format("{{\"first_layer\": {}, \"rows\": [", load.first_layer);
    for (size_t layer = 0; layer < load.rows.size(); ++layer)
        text += fmt::format("{}\n[{}]", layer == 0 ? "" : ",", fmt::join(load.rows[layer], ", "));
    return text + "\n]}\n";
}

ExpertLoad parse_expert_load(const std::string& text, const std::string& name) {
    const Json json = parse(text, name);
    ExpertLoad load;
    if (!json.contains("first_layer") || !json["first_layer"].is_number_integer() ||
        !json.contains("rows"))
        refuse(name, "needs first_layer and rows, as log.expert_load writes them");
    load.first_layer = json["first_layer"].get<int64_t>();
    load.rows = read_lists<int64_t>(json["rows"], name, "rows");
    return load;
}

ExpertLoad gather_expert_load(RankFabric& fabric, const ModelConfig& model, World& world) {
    const int64_t num_layers = fabric.has_exchange() ? model.n_layers - model.n_dense_layers : 0;
    const auto num_experts = static_cast<size_t>(model.n_routed_experts);
    ExpertLoad load{.first_layer = model.n_dense_layers, .rows = {}};
    load.rows.assign(static_cast<size_t>(num_layers), std::vector<int64_t>(num_experts, 0));
    std::string own;  // as bytes, layer by layer
    if (fabric.expert_rank() >= 0)
        for (int64_t layer = 0; layer < num_layers; ++layer) {
            std::vector<int64_t> rows(num_experts, 0);
            const auto& placements = fabric.options().placements;
            const Placement& placement =
                placements.size() == 1 ? placements[0] : placements[static_cast<size_t>(layer)];
            const std::span<const int> experts = placement.experts(fabric.expert_rank());
            const std::span<const int64_t> by_slot =
                fabric.exchange().expert_load(static_cast<int>(model.n_dense_layers + layer));
            for (size_t slot = 0; slot < experts.size(); ++slot)
                rows[static_cast<size_t>(experts[slot])] += by_slot[slot];
            own.append(reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(int64_t));
        }
    for (const std::string& bytes : world.all_gather(own)) {
        if (bytes.empty()) continue;
        const char* from = bytes.data();
        for (std::vector<int64_t>& layer : load.rows)
            for (int64_t& rows : layer) {
                int64_t more = 0;
                std::memcpy(&more, from, sizeof more);
                from += sizeof more;
                rows += more;
            }
    }
    return load;
}

std::vector<Placement> parse_placements(const std::string& text, const std::string& name,
                                        int num_experts, int num_moe_layers, int num_expert_ranks) {
    const Json json = parse(text, name);
    std::vector<Placement> placements;
    const auto add = [&](const Json& lists, const std::string& what) {
        auto experts_of_rank = read_lists<int>(lists, name, what.c_str());
        if (static_cast<int>(experts_of_rank.size()) != num_expert_ranks)
            refuse(name, fmt::format("{} is for {} expert ranks, but the layout has {}", what,
                                     experts_of_rank.size(), num_expert_ranks));
        try {
            placements.emplace_back(num_experts, std::move(experts_of_rank));
        } catch (const Error& error) {
            refuse(name, fmt::format("{}: {}", what, error.what()));
        }
    };
    if (json.contains("experts_of_rank")) {
        add(json["experts_of_rank"], "experts_of_rank");
        return placements;
    }
    if (!json.contains("layers") || !json["layers"].is_array())
        refuse(name, "needs experts_of_rank, or layers with one such list for each MoE layer");
    if (static_cast<int>(json["layers"].size()) != num_moe_layers)
        refuse(name, fmt::format("layers: has {} entries, but the model has {} MoE layers",
                                 json["layers"].size(), num_moe_layers));
    for (size_t layer = 0; layer < json["layers"].size(); ++layer)
        add(json["layers"][layer], fmt::format("layers[{}]", layer));
    return placements;
}

namespace {

std::vector<Placement> chosen_placements(const Config& config, const ModelConfig& model,
                                         const Layout& layout, World& world) {
    const auto num_moe_layers = static_cast<int>(model.n_layers - model.n_dense_layers);
    const auto num_experts = static_cast<int>(model.n_routed_experts);
    if (num_moe_layers <= 0) return {};
    const std::string& placement = config.layout.placement;
    if (placement == "contiguous") return {contiguous_placement(num_experts, layout.num_expert())};
    if (placement != "balanced")
        return parse_placements(read_on_rank_0(placement, world), placement, num_experts,
                                num_moe_layers, layout.num_expert());
    const std::string& path = config.layout.expert_load;
    const ExpertLoad load = parse_expert_load(read_on_rank_0(path, world), path);
    const bool fits = static_cast<int>(load.rows.size()) == num_moe_layers &&
                      std::all_of(load.rows.begin(), load.rows.end(), [&](const auto& rows) {
                          return static_cast<int>(rows.size()) == num_experts;
                      });
    if (!fits)
        refuse(path, fmt::format("is of another model: this one has {} MoE layers of {} experts",
                                 num_moe_layers, num_experts));
    return balance(load, config, model, layout, num_expert_nodes(layout, world.node_of_rank()));
}

}  // namespace

std::vector<Placement> make_placements(const Config& config, const ModelConfig& model,
                                       const Layout& layout, World& world) {
    std::vector<Placement> placements = chosen_placements(config, model, layout, world);
    if (placements.size() > 1)
        placements.resize(static_cast<size_t>(model.num_moe_blocks()), placements.back());
    const auto has_copies = [](const Placement& each) {
        return each.num_copies() > each.num_experts();
    };
    if (config.exchange.combine == Config::Exchange::Combine::reduced &&
        std::ranges::any_of(placements, has_copies))
        throw Error(ErrorKind::usage,
                    "exchange.combine: reduced adds up what one rank has, and which copy of an "
                    "expert a token meets depends on its batch: the same run would give other "
                    "results each time; use exact, or one copy of each expert");
    return placements;
}

std::vector<std::vector<SharedExpert>> experts_shared_on_node(
    const Layout& layout, const std::vector<Placement>& placements,
    const std::vector<int>& node_of_rank, int world_rank) {
    std::vector<std::vector<SharedExpert>> shared;
    if (layout.expert_rank(world_rank) < 0) return shared;
    std::vector<int> node;
    for (int expert = 0; expert < layout.num_expert(); ++expert)
        if (node_of_rank[static_cast<size_t>(layout.world_rank_of_expert(expert))] ==
            node_of_rank[static_cast<size_t>(world_rank)])
            node.push_back(expert);
    for (const Placement& placement : placements)
        shared.push_back(shared_experts(placement, node, layout.expert_rank(world_rank)));
    return shared;
}

int num_expert_nodes(const Layout& layout, const std::vector<int>& node_of_rank) {
    std::vector<int> nodes;
    for (int expert = 0; expert < layout.num_expert(); ++expert)
        nodes.push_back(node_of_rank[static_cast<size_t>(layout.world_rank_of_expert(expert))]);
    std::vector<int> different = nodes;
    different.erase(std::unique(different.begin(), different.end()), different.end());
    const size_t num_nodes = different.size();
    if (nodes.size() % num_nodes != 0) return 1;
    const size_t per_node = nodes.size() / num_nodes;
    for (size_t i = 0; i < nodes.size(); ++i)
        if (nodes[i] != different[i / per_node]) return 1;
    std::sort(different.begin(), different.end());
    const bool repeated = std::unique(different.begin(), different.end()) != different.end();
    return repeated ? 1 : static_cast<int>(num_nodes);
}

}  // namespace ferry
