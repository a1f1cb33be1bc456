// Which tokens of an attention rank travel to which expert rank, in which row and entry of its
// message. Pure: made from routing and placement, printable, tested without MPI.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/placement.h"
#include "comm/plan_item.h"
#include "comm/routing.h"

namespace ferry {

class ExchangePlan {
  public:
    // Room for max_tokens; build() never allocates up to there.
    ExchangePlan(int64_t max_tokens, int64_t topk, int num_expert_ranks);

    void build(const Routing& routing, const Placement& placement, int attention_rank);

    int64_t num_tokens() const { return num_tokens_; }
    int64_t topk() const { return topk_; }
    std::span<const PlanItem> items(int64_t token) const {
        return {items_.data() + token * topk_, static_cast<size_t>(topk_)};
    }
    // A copy of the gate's weights, by token.
    std::span<const float> weights(int64_t token) const {
        return {weights_.data() + token * topk_, static_cast<size_t>(topk_)};
    }
    int32_t num_rows(int expert_rank) const { return num_rows_[expert_rank]; }
    int32_t num_entries(int expert_rank) const { return num_entries_[expert_rank]; }

    std::string describe() const;  // "to expert rank 1: token 0 -> slots 0 (k 0), 2 (k 3); ..."

  private:
    int64_t topk_;
    int64_t num_tokens_ = 0;
    std::vector<PlanItem> items_;
    std::vector<float> weights_;
    std::vector<int32_t> num_rows_;
    std::vector<int32_t> num_entries_;
    std::vector<int64_t> last_token_;  // that was given a row, by expert rank
};

}  // namespace ferry
