// Which expert rank holds which routed experts of one MoE layer, redundant copies included. A plain
// value: made purely, printable, tested without MPI.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ferry {

// One copy of an expert: slot `slot` of expert rank `expert_rank` (0 ... expert ranks - 1).
struct ExpertCopy {
    int expert_rank = 0;
    int slot = 0;

    bool operator==(const ExpertCopy&) const = default;
};

class Placement {
  public:
    Placement() = default;
    // experts_of_rank[r][s]: global expert id in slot s of expert rank r. Throws Error(usage) when
    // an id is outside [0, num_experts) or an expert has no copy. Ranks may be empty.
    Placement(int num_experts, std::vector<std::vector<int>> experts_of_rank);

    int num_experts() const { return static_cast<int>(copies_.size()); }
    int num_ranks() const { return static_cast<int>(experts_of_rank_.size()); }
    int num_copies() const { return num_copies_; }
    int max_slots() const;

    // Global expert ids of one rank by slot: the order in which weights are loaded and rows arrive.
    std::span<const int> experts(int expert_rank) const { return experts_of_rank_[expert_rank]; }
    std::span<const ExpertCopy> copies(int expert) const { return copies_[expert]; }

    // The copy that serves a token: by token and source, so that copies share the load; never by
    // time or arrival, so that a run is repeatable.
    const ExpertCopy& copy_for(int expert, int attention_rank, int64_t token) const {
        const std::vector<ExpertCopy>& all = copies_[expert];
        return all.size() == 1 ? all[0]
                               : all[static_cast<size_t>(attention_rank + token) % all.size()];
    }

    bool operator==(const Placement&) const = default;
    std::string describe() const;  // one line per rank: "expert rank 2: experts 4-5 (2)"
    // "0-3, 7 + copies of 9": an expert is listed with its first rank, copied on the others.
    std::string describe_experts(int expert_rank) const;

  private:
    std::vector<std::vector<int>> experts_of_rank_;
    std::vector<std::vector<ExpertCopy>> copies_;  // by expert, ordered by rank and slot
    int num_copies_ = 0;
};

// An expert that has several copies on one node, as one of the node's ranks sees it.
struct SharedExpert {
    int expert = 0;
    int num_holders = 0;  // ranks of the node that hold it
    int holder = -1;      // which of them this rank is; -1: none

    bool operator==(const SharedExpert&) const = default;
};
// By expert, for expert rank `expert_rank` of a node whose expert ranks are `node`, ascending.
std::vector<SharedExpert> shared_experts(const Placement& placement, std::span<const int> node,
                                         int expert_rank);

// Ranges of consecutive experts; the first num_experts % num_ranks ranks hold one more.
Placement contiguous_placement(int num_experts, int num_ranks);

struct BalanceOptions {
    int num_ranks = 1;
    int num_redundant = 0;  // extra copies in all
    int num_groups = 1;     // groups of the gate (consecutive experts); 1: none
    int num_nodes = 1;      // expert ranks [i, i + 1) * num_ranks / num_nodes share a node
};

// Greedy balanced packing of experts and copies of hot ones, as in DeepSeek's EPLB
// (github.com/deepseek-ai/EPLB): where nodes divide groups, groups are packed to nodes, experts
// copied within their node and copies packed to the node's ranks; otherwise all ranks are one node.
// loads[e]: rows that expert e received. Copies need not divide by ranks: fuller ranks then hold
// one more.
Placement balanced_placement(std::span<const double> loads, const BalanceOptions& options);

}  // namespace ferry
