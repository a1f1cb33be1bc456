#include "comm/placement.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace ferry {
namespace {

// "0-3, 7, 9-10"
std::string describe_ids(std::span<const int> ids) {
    std::string text;
    for (size_t i = 0; i < ids.size();) {
        size_t j = i;
        while (j + 1 < ids.size() && ids[j + 1] == ids[j] + 1) ++j;
        text += fmt::format("{}{}", text.empty() ? "" : ", ", ids[i]);
        if (j > i) text += fmt::format("-{}", ids[j]);
        i = j + 1;
    }
    return text;
}

// Packs items to packs of nearly equal counts, heaviest item first, each into the lightest pack
// that is not full. Returns the items of each pack in the order in which they came.
std::vector<std::vector<int>> pack_balanced(std::span<const double> weights, int num_packs) {
    const int num_items = static_cast<int>(weights.size());
    std::vector<std::vector<int>> packs(num_packs);
    const int capacity = (num_items + num_packs - 1) / num_packs;
    if (capacity <= 1) {
        for (int item = 0; item < num_items; ++item) packs[item].push_back(item);
        return packs;
    }
    std::vector<int> order(num_items);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return weights[a] > weights[b]; });
    std::vector<double> pack_weight(num_packs, 0.0);
    for (int item : order) {
        int lightest = -1;
        for (int pack = 0; pack < num_packs; ++pack) {
            if (static_cast<int>(packs[pack].size()) == capacity) continue;
            if (lightest < 0 || pack_weight[pack] < pack_weight[lightest]) lightest = pack;
        }
        packs[lightest].push_back(item);
        pack_weight[lightest] += weights[item];
    }
    return packs;
}

// Items 0..n-1 once each, then `num_extra` more copies, each of the item with the highest load per
// copy (the first one on ties).
std::vector<int> replicate(std::span<const double> loads, int num_extra) {
    std::vector<int> items(loads.size());
    std::iota(items.begin(), items.end(), 0);
    std::vector<int> count(loads.size(), 1);
    for (int extra = 0; extra < num_extra; ++extra) {
        size_t hottest = 0;
        for (size_t i = 1; i < loads.size(); ++i)
            if (loads[i] / count[i] > loads[hottest] / count[hottest]) hottest = i;
        items.push_back(static_cast<int>(hottest));
        ++count[hottest];
    }
    return items;
}

// Copies of `experts` (global ids) packed to `num_ranks` ranks.
std::vector<std::vector<int>> place_on_node(std::span<const int> experts,
                                            std::span<const double> loads, int num_extra,
                                            int num_ranks) {
    std::vector<double> node_loads;
    for (int expert : experts) node_loads.push_back(loads[expert]);
    const std::vector<int> copies = replicate(node_loads, num_extra);
    std::vector<int> count(experts.size(), 0);
    for (int copy : copies) ++count[copy];
    std::vector<double> copy_loads;
    for (int copy : copies) copy_loads.push_back(node_loads[copy] / count[copy]);
    std::vector<std::vector<int>> ranks = pack_balanced(copy_loads, num_ranks);
    for (std::vector<int>& rank : ranks)
        for (int& item : rank) item = experts[copies[item]];
    return ranks;
}

}  // namespace

Placement::Placement(int num_experts, std::vector<std::vector<int>> experts_of_rank)
    : experts_of_rank_(std::move(experts_of_rank)), copies_(num_experts) {
    for (int rank = 0; rank < num_ranks(); ++rank) {
        for (int slot = 0; slot < static_cast<int>(experts_of_rank_[rank].size()); ++slot) {
            const int expert = experts_of_rank_[rank][slot];
            if (expert < 0 || expert >= num_experts)
                throw Error(ErrorKind::usage,
                            "placement: expert rank {} lists expert {}, but experts are 0 to {}",
                            rank, expert, num_experts - 1);
            copies_[expert].push_back({rank, slot});
            ++num_copies_;
        }
    }
    for (int expert = 0; expert < num_experts; ++expert)
        if (copies_[expert].empty())
            throw Error(ErrorKind::usage, "placement: no rank holds expert {}; list it once",
                        expert);
}

int Placement::max_slots() const {
    size_t slots = 0;
    for (const std::vector<int>& experts : experts_of_rank_)
        slots = std::max(slots, experts.size());
    return static_cast<int>(slots);
}

std::string Placement::describe_experts(int expert_rank) const {
    std::vector<int> first, copied;
    for (const int expert : experts_of_rank_[expert_rank])
        (copies_[expert][0].expert_rank == expert_rank ? first : copied).push_back(expert);
    std::sort(first.begin(), first.end());
    std::sort(copied.begin(), copied.end());
    const std::string text = describe_ids(first);
    if (copied.empty()) return text.empty() ? "none" : text;
    return fmt::format("{}{}copies of {}", text, text.empty() ? "" : " + ", describe_ids(copied));
}

std::string Placement::describe() const {
    std::string text;
    for (int rank = 0; rank < num_ranks(); ++rank)
        text += fmt::format("expert rank {}: experts {} ({})\n", rank,
                            experts(rank).empty() ? "none" : describe_ids(experts(rank)),
                            experts(rank).size());
    return text;
}

std::vector<SharedExpert> shared_experts(const Placement& placement, std::span<const int> node,
                                         int expert_rank) {
    std::vector<SharedExpert> shared;
    for (int expert = 0; expert < placement.num_experts(); ++expert) {
        SharedExpert one{.expert = expert};
        int num_copies = 0, last = -1;
        for (const ExpertCopy& copy : placement.copies(expert)) {  // by rank
            if (!std::binary_search(node.begin(), node.end(), copy.expert_rank)) continue;
            ++num_copies;
            if (copy.expert_rank == last) continue;
            last = copy.expert_rank;
            if (last == expert_rank) one.holder = one.num_holders;
            ++one.num_holders;
        }
        if (num_copies > 1) shared.push_back(one);
    }
    return shared;
}

Placement contiguous_placement(int num_experts, int num_ranks) {
    std::vector<std::vector<int>> experts_of_rank(num_ranks);
    int expert = 0;
    for (int rank = 0; rank < num_ranks; ++rank) {
        const int count = num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
        for (int i = 0; i < count; ++i) experts_of_rank[rank].push_back(expert++);
    }
    return Placement(num_experts, std::move(experts_of_rank));
}

Placement balanced_placement(std::span<const double> loads, const BalanceOptions& options) {
    const int num_experts = static_cast<int>(loads.size());
    const int num_copies = num_experts + options.num_redundant;
    int num_nodes = options.num_nodes;
    int num_groups = options.num_groups;
    if (num_groups % num_nodes != 0 || num_experts % num_groups != 0 ||
        num_copies % num_nodes != 0 || options.num_ranks % num_nodes != 0)
        num_nodes = num_groups = 1;

    const int group_size = num_experts / num_groups;
    std::vector<double> group_loads(num_groups, 0.0);
    for (int expert = 0; expert < num_experts; ++expert)
        group_loads[expert / group_size] += loads[expert];

    std::vector<std::vector<int>> experts_of_rank;
    for (const std::vector<int>& groups : pack_balanced(group_loads, num_nodes)) {
        std::vector<int> experts;
        for (int group : groups)
            for (int i = 0; i < group_size; ++i) experts.push_back(group * group_size + i);
        const int num_extra = num_copies / num_nodes - static_cast<int>(experts.size());
        for (std::vector<int>& rank :
             place_on_node(experts, loads, num_extra, options.num_ranks / num_nodes))
            experts_of_rank.push_back(std::move(rank));
    }
    return Placement(num_experts, std::move(experts_of_rank));
}

}  // namespace ferry
