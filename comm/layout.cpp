#include "comm/layout.h"

#include <algorithm>

#include "base/error.h"

namespace ferry {
namespace {

// Attention ranks of the node that has the fewest of them, cut down to a divisor of all.
int default_tp_size(int num_attention, std::span<const int> node_of_rank) {
    std::vector<int> per_node(
        static_cast<size_t>(*std::max_element(node_of_rank.begin(), node_of_rank.end())) + 1, 0);
    bool grouped = true;  // ranks of a node are consecutive
    for (int rank = 0; rank < num_attention; ++rank) {
        const int node = node_of_rank[rank];
        if (per_node[node] > 0 && node_of_rank[rank - 1] != node) grouped = false;
        ++per_node[node];
    }
    if (!grouped) return 1;
    int size = num_attention;
    for (int count : per_node)
        if (count > 0) size = std::min(size, count);
    // A group must not straddle nodes: it divides the attention ranks of every node.
    while (std::any_of(per_node.begin(), per_node.end(), [&](int c) { return c % size != 0; }))
        --size;
    return size;
}

std::string divisors(int n) {
    std::string text;
    for (int d = 1; d <= n; ++d)
        if (n % d == 0) text += fmt::format("{}{}", text.empty() ? "" : ", ", d);
    return text;
}

void check_disaggregated(int a, int e, int num_ranks) {
    if (a < 1 || e < 1)
        throw Error(ErrorKind::usage,
                    "layout: disaggregated needs at least one rank of each role, not {} attention "
                    "and {} expert ranks in a world of {}; for ranks that are both use mode: "
                    "colocated",
                    a, e, num_ranks);
    if (a + e == num_ranks) return;
    std::string fits;
    if (num_ranks > a) fits += fmt::format(", or set expert_ranks: {}", num_ranks - a);
    if (num_ranks > e) fits += fmt::format(", or set attention_ranks: {}", num_ranks - e);
    if (num_ranks == 1) fits = ", or set mode: colocated";
    throw Error(ErrorKind::usage,
                "layout: {} attention + {} expert ranks = {}, but this world has {} rank{}; start "
                "{} ranks (mpirun -n {}){}",
                a, e, a + e, num_ranks, num_ranks == 1 ? "" : "s", a + e, a + e, fits);
}

}  // namespace

std::vector<int> Layout::tp_members(int attention_rank) const {
    std::vector<int> members(tp_size_);
    for (int i = 0; i < tp_size_; ++i)
        members[i] = world_rank_of_attention(tp_group(attention_rank) * tp_size_ + i);
    return members;
}

namespace {

// "0-31", or "48 to 50 in a layer" when layers differ.
std::string experts_column(std::span<const Placement> placements, int expert_rank) {
    if (expert_rank < 0 || placements.empty()) return "-";
    if (placements.size() == 1) return placements[0].describe_experts(expert_rank);
    size_t least = placements[0].experts(expert_rank).size(), most = least;
    for (const Placement& placement : placements) {
        least = std::min(least, placement.experts(expert_rank).size());
        most = std::max(most, placement.experts(expert_rank).size());
    }
    return least == most ? fmt::format("{} in a layer", most)
                         : fmt::format("{} to {} in a layer", least, most);
}

}  // namespace

std::string Layout::describe(std::span<const std::string> hosts,
                             std::span<const Placement> placements,
                             std::span<const RankPlace> places) const {
    std::string text = fmt::format(
        "{} layout: {} attention, {} expert ranks of {}, tensor-parallel groups of {}\n",
        mode_ == LayoutMode::colocated ? "colocated" : "disaggregated", num_attention_, num_expert_,
        num_ranks_, tp_size_);
    text += "rank  node              attention (TP)  expert  GPU  cores    experts\n";
    for (int rank = 0; rank < num_ranks_; ++rank) {
        const int node = node_of_rank_[rank];
        const int a = attention_rank(rank);
        const int e = expert_rank(rank);
        const RankPlace place = places.empty() ? RankPlace{.gpu = "-", .cores = "-"}
                                               : places[static_cast<size_t>(rank)];
        text += fmt::format(
            "{:<4}  {:<16}  {:<14}  {:<6}  {:<3}  {:<7}  {}\n", rank,
            node < static_cast<int>(hosts.size()) ? hosts[node] : fmt::format("{}", node),
            a < 0 ? "-" : fmt::format("{} ({}.{})", a, tp_group(a), tp_rank(a)),
            e < 0 ? "-" : fmt::format("{}", e), place.gpu, place.cores,
            experts_column(placements, e));
    }
    return text;
}

void fill_roles(int& attention_ranks, int& expert_ranks, int num_ranks) {
    if (attention_ranks == 0)
        attention_ranks = std::max(0, num_ranks - expert_ranks);
    else if (expert_ranks == 0)
        expert_ranks = std::max(0, num_ranks - attention_ranks);
}

Layout make_layout(const LayoutOptions& options, std::span<const int> node_of_rank) {
    const int num_ranks = static_cast<int>(node_of_rank.size());
    Layout layout;
    layout.mode_ = options.mode;
    layout.num_ranks_ = num_ranks;
    layout.node_of_rank_.assign(node_of_rank.begin(), node_of_rank.end());
    if (options.mode == LayoutMode::disaggregated) {
        layout.num_attention_ = options.attention_ranks;
        layout.num_expert_ = options.expert_ranks;
        fill_roles(layout.num_attention_, layout.num_expert_, num_ranks);
        check_disaggregated(layout.num_attention_, layout.num_expert_, num_ranks);
    } else {
        for (const auto& [name, count] : {std::pair("attention_ranks", options.attention_ranks),
                                          std::pair("expert_ranks", options.expert_ranks)})
            if (count != 0 && count != num_ranks)
                throw Error(ErrorKind::usage,
                            "layout: colocated uses every rank for both roles, but {} is {} and "
                            "this world has {} ranks; start mpirun -n {} or leave it out",
                            name, count, num_ranks, count);
        layout.num_attention_ = layout.num_expert_ = num_ranks;
    }
    layout.tp_size_ = options.tp_size != 0 ? options.tp_size
                                           : default_tp_size(layout.num_attention_, node_of_rank);
    if (layout.tp_size_ < 1 || layout.num_attention_ % layout.tp_size_ != 0)
        throw Error(ErrorKind::usage,
                    "layout: tp_size {} does not divide {} attention ranks; these do: {}",
                    options.tp_size, layout.num_attention_, divisors(layout.num_attention_));
    return layout;
}

}  // namespace ferry
