// [8] Routed experts where tokens need not travel: every expert is on this rank. The exchange
// (comm/) must give the same bits for any layout.
#pragma once
#include "comm/routing.h"
#include "layers/experts.h"

namespace ferry {

// Rows of a step in expert order: by expert, then by token.
struct ExpertOrder {
    std::vector<int64_t> offsets;  // [experts + 1]
    std::vector<int32_t> tokens;   // [rows] token of each row
    std::vector<int32_t> row_of;   // [tokens * topk] row of (token, slot)

    // No allocation when capacity suffices.
    void build(const Tensor& experts, int64_t num_experts);
};

// out [tokens, dim] = sum over slots k = 0, 1, ... of weight_k * expert_k(x): out = fma(weight_k,
// y_k, out) from zero.
void moe_local(Kernels& kernels, Workspace& workspace, const Experts& experts, ExpertOrder& order,
               const Tensor& x, const Routing& routing, const Tensor& out);

}  // namespace ferry
