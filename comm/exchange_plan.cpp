#include "comm/exchange_plan.h"

#include <algorithm>

#include "base/check.h"

namespace ferry {

ExchangePlan::ExchangePlan(int64_t max_tokens, int64_t topk, int num_expert_ranks)
    : topk_(topk),
      items_(static_cast<size_t>(max_tokens * topk)),
      weights_(static_cast<size_t>(max_tokens * topk)),
      num_rows_(num_expert_ranks),
      num_entries_(num_expert_ranks),
      last_token_(num_expert_ranks) {}

void ExchangePlan::build(const Routing& routing, const Placement& placement, int attention_rank) {
    num_tokens_ = routing.experts.rank() == 0 ? 0 : routing.experts.rows();
    std::fill(num_rows_.begin(), num_rows_.end(), 0);
    std::fill(num_entries_.begin(), num_entries_.end(), 0);
    std::fill(last_token_.begin(), last_token_.end(), -1);
    if (num_tokens_ == 0) return;
    check_shape(routing.experts, "routing.experts", DType::i32, {num_tokens_, topk_});
    check_shape(routing.weights, "routing.weights", DType::f32, {num_tokens_, topk_});
    FERRY_CHECK(num_tokens_ * topk_ <= static_cast<int64_t>(items_.size()),
                "{} tokens, but the exchange was made for {}", num_tokens_,
                static_cast<int64_t>(items_.size()) / topk_);
    for (int64_t token = 0; token < num_tokens_; ++token) {
        const int32_t* experts = routing.experts.row<int32_t>(token);
        std::copy_n(routing.weights.row<float>(token), topk_, weights_.data() + token * topk_);
        for (int64_t k = 0; k < topk_; ++k) {
            FERRY_CHECK(experts[k] >= 0 && experts[k] < placement.num_experts(),
                        "token {} is routed to expert {} of {}", token, experts[k],
                        placement.num_experts());
            const ExpertCopy& copy = placement.copy_for(experts[k], attention_rank, token);
            const int rank = copy.expert_rank;
            const bool first = last_token_[rank] != token;
            if (first) {
                last_token_[rank] = token;
                ++num_rows_[rank];
            }
            items_[static_cast<size_t>(token * topk_ + k)] = {
                .expert_rank = rank,
                .row = num_rows_[rank] - 1,
                .entry = num_entries_[rank]++,
                .slot = static_cast<uint16_t>(copy.slot),
                .first = first};
        }
    }
}

std::string ExchangePlan::describe() const {
    std::string text;
    for (int rank = 0; rank < static_cast<int>(num_rows_.size()); ++rank) {
        text += fmt::format("to expert rank {}: {} rows, {} entries", rank, num_rows(rank),
                            num_entries(rank));
        for (int64_t token = 0; token < num_tokens_; ++token) {
            for (int64_t k = 0; k < topk_; ++k) {
                const PlanItem& item = items(token)[static_cast<size_t>(k)];
                if (item.expert_rank != rank) continue;
                if (item.first) text += fmt::format("; token {} ->", token);
                text += fmt::format("{} slot {} (k {})", item.first ? "" : ",", item.slot, k);
            }
        }
        text += "\n";
    }
    return text;
}

}  // namespace ferry
