#include "layers/gate.h"

namespace ferry {

Gate::Gate(WeightLoader& loader, const std::string& prefix)
    : weight_(loader.linear_f32(prefix + "weight")) {
    const ModelConfig& c = loader.config();
    if (c.has_gate_bias) bias_ = loader.plain(prefix + "bias");
    params_ = {.score_func = c.score_func,
               .topk = c.n_activated_experts,
               .num_groups = c.n_expert_groups,
               .num_kept_groups = c.n_limited_groups,
               .normalise = c.norm_topk_prob,
               .scaling_factor = static_cast<float>(c.routed_scaling_factor)};
}

void Gate::forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                   const Routing& routing) const {
    const Workspace::Scope scope(workspace);
    const Tensor scores = workspace.take(DType::f32, {x.rows(), weight_.out()});
    weight_.forward(kernels, workspace, x, scores);
    kernels.gate(scores, bias_ ? &bias_->view() : nullptr, params_, routing.experts,
                 routing.weights);
}

}  // namespace ferry
