#include "layers/gate.h"

#include <memory>

namespace ferry {
namespace {

Weight load_f32(WeightLoader& loader, const std::string& name) {
    const std::vector<int64_t> shape = loader.shape(name);
    Weight weight =
        loader.make_weight({.dtype = DType::f32, .groups = 1, .out = shape[0], .in = shape[1]});
    if (loader.is_mine(0))
        loader.later(weight.size_bytes(), [&loader, name, rows = shape[0],
                                           to = std::make_shared<Weight>(view_of(weight))] {
            loader.kernels().pack(*to, 0, 0, loader.dequantised(name, {0, rows}), nullptr);
        });
    return weight;
}

}  // namespace

Gate::Gate(WeightLoader& loader, const std::string& prefix)
    : weight_(load_f32(loader, prefix + "weight")) {
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
