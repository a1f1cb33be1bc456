// [2] Who does what: roles of the world's ranks, tensor-parallel groups, expert placement. A plain
// value: made purely from options and the list of nodes, printable, tested without MPI.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "comm/placement.h"

namespace ferry {

enum class LayoutMode { disaggregated, colocated };

struct LayoutOptions {
    LayoutMode mode = LayoutMode::disaggregated;
    // Disaggregated: one of them may be 0, for the ranks that the other leaves. Colocated: 0 means
    // every rank of the world.
    int attention_ranks = 0;
    int expert_ranks = 0;
    int tp_size = 0;  // 0: the attention ranks of one node where that divides, else the
                      // largest divisor below it
};

// Disaggregated: the role that is 0 gets the ranks that the other leaves, none at least.
void fill_roles(int& attention_ranks, int& expert_ranks, int num_ranks);

// Where a rank runs, for the table that is printed at the start.
struct RankPlace {
    std::string gpu;    // "0", or "-"
    std::string cores;  // "0-7"
};

// World ranks: disaggregated layouts number attention ranks first, then expert ranks; colocated
// ranks are both. Attention rank a is world rank a in either mode.
class Layout {
  public:
    int num_ranks() const { return num_ranks_; }
    LayoutMode mode() const { return mode_; }
    int num_attention() const { return num_attention_; }
    int num_expert() const { return num_expert_; }

    // -1 when the world rank does not have the role.
    int attention_rank(int world_rank) const {
        return world_rank < num_attention_ ? world_rank : -1;
    }
    int expert_rank(int world_rank) const {
        return mode_ == LayoutMode::colocated
                   ? world_rank
                   : (world_rank < num_attention_ ? -1 : world_rank - num_attention_);
    }
    int world_rank_of_attention(int attention_rank) const { return attention_rank; }
    int world_rank_of_expert(int expert_rank) const {
        return mode_ == LayoutMode::colocated ? expert_rank : num_attention_ + expert_rank;
    }

    int node_of_rank(int world_rank) const {
        return node_of_rank_[static_cast<size_t>(world_rank)];
    }

    // Tensor-parallel groups are ranges of attention ranks.
    int tp_size() const { return tp_size_; }
    int tp_group(int attention_rank) const { return attention_rank / tp_size_; }
    int tp_rank(int attention_rank) const { return attention_rank % tp_size_; }
    // World ranks of the group of `attention_rank`, in order.
    std::vector<int> tp_members(int attention_rank) const;

    // A table for people, the role map: one line per rank with its node, roles, place and experts.
    // `hosts`: names by node, may be empty. `placements`: one for all MoE layers or one for each,
    // may be empty. `places`: by rank, may be empty.
    std::string describe(std::span<const std::string> hosts, std::span<const Placement> placements,
                         std::span<const RankPlace> places = {}) const;

    friend Layout make_layout(const LayoutOptions& options, std::span<const int> node_of_rank);

  private:
    LayoutMode mode_ = LayoutMode::colocated;
    int num_ranks_ = 1;
    int num_attention_ = 1;
    int num_expert_ = 1;
    int tp_size_ = 1;
    std::vector<int> node_of_rank_;
};

// node_of_rank: the node (0, 1, ...) of every world rank; its length is the size of the world.
// Throws Error(usage) that says what does not fit and what would.
Layout make_layout(const LayoutOptions& options, std::span<const int> node_of_rank);

}  // namespace ferry
