#include "runtime/rank_fabric.h"

namespace ferry {

RankFabric::RankFabric(const FabricOptions& options, const ModelConfig& model,
                       const Numerics& numerics, Transport& transport, ThreadPool* threads,
                       const std::function<void()>& before_connect)
    : options_(options), rank_(transport.rank()) {
    if (attention_rank() >= 0)
        tensor_parallel_ =
            make_tensor_parallel(transport, options_.layout.tp_members(attention_rank()),
                                 {.num_slices = static_cast<int>(numerics.tp_slices),
                                  .stall_timeout_s = options_.exchange.stall_timeout_s},
                                 threads);
    const int64_t num_moe_layers = model.n_layers - model.n_dense_layers;
    if (num_moe_layers > 0) {
        ExchangeSetup setup{.options = options_.exchange,
                            .layout = options_.layout,
                            .first_layer = static_cast<int>(model.n_dense_layers),
                            .num_layers = static_cast<int>(num_moe_layers),
                            .placements = options_.placements};
        setup.options.dim = model.dim;
        setup.options.topk = model.n_activated_experts;
        setup.options.max_tokens = options_.max_tokens;
        exchange_ = make_exchange(setup, transport, threads, false);
    }
    if (before_connect) before_connect();
    transport.connect();
}

ModelPart RankFabric::part() const {
    ModelPart part;
    part.attention = attention_rank() >= 0;
    part.tp_size = options_.layout.tp_size();
    part.tp_rank = part.attention ? options_.layout.tp_rank(attention_rank()) : 0;
    if (expert_rank() >= 0 && exchange_ != nullptr)
        for (const Placement& placement : options_.placements) {
            const std::span<const int> experts = placement.experts(expert_rank());
            part.experts.emplace_back(experts.begin(), experts.end());
        }
    return part;
}

FabricOptions single_rank_fabric(const ModelConfig& model, int64_t max_tokens,
                                 int num_micro_batches) {
    const int node_of_rank[] = {0};
    FabricOptions options{
        .layout = make_layout({.mode = LayoutMode::colocated, .tp_size = 1}, node_of_rank),
        .placements = {},
        .exchange = {.num_micro_batches = num_micro_batches, .dtype = DType::f32},
        .max_tokens = max_tokens};
    if (model.n_routed_experts > 0)
        options.placements = {contiguous_placement(static_cast<int>(model.n_routed_experts), 1)};
    return options;
}

}  // namespace ferry
