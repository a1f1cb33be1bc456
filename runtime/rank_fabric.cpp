#include "runtime/rank_fabric.h"

#include "comm/exchange_device.h"
#include "comm/exchange_staged.h"
#include "runtime/device_tensor_parallel.h"

namespace ferry {

RankFabric::RankFabric(const FabricOptions& options, const ModelConfig& model,
                       const Numerics& numerics, Transport& transport, Kernels& kernels,
                       const std::function<void()>& before_connect)
    : options_(options), model_(model), rank_(transport.rank()) {
    ThreadPool* threads = &kernels.threads();
    const bool on_host = kernels.device().type() == DeviceType::cpu;
    if (attention_rank() >= 0) {
        const std::vector<int> members = options_.layout.tp_members(attention_rank());
        tensor_parallel_ =
            make_tensor_parallel(transport, members,
                                 {.num_slices = static_cast<int>(numerics.tp_slices),
                                  .stall_timeout_s = options_.exchange.stall_timeout_s},
                                 threads);
        if (!on_host)
            tensor_parallel_ = make_device_tensor_parallel(std::move(tensor_parallel_), kernels,
                                                           options_, members, model);
    }
    if (model.n_layers > model.n_dense_layers) {
        ExchangeSetup setup{.options = options_.exchange,
                            .layout = options_.layout,
                            .first_layer = static_cast<int>(model.n_dense_layers),
                            .num_layers = static_cast<int>(model.n_layers - model.n_dense_layers),
                            .num_rounds = options_.num_draft_rounds,
                            .placements = options_.placements};
        setup.options.dim = model.dim;
        setup.options.topk = model.n_activated_experts;
        setup.options.max_tokens = options_.max_tokens;
        if (options_.blocks != nullptr) {
            exchange_ = make_device_exchange(setup, *options_.blocks);
        } else {
            exchange_ = make_exchange(setup, transport, threads, false);
            if (!on_host) exchange_ = make_staged_exchange(std::move(exchange_), kernels.device());
        }
    }
    if (before_connect) before_connect();
    transport.connect();
}

ModelPart RankFabric::part() const {
    return model_part(options_, model_, rank_);
}

ModelPart model_part(const FabricOptions& options, const ModelConfig& model, int world_rank) {
    ModelPart part;
    const int attention = options.layout.attention_rank(world_rank);
    const int expert = options.layout.expert_rank(world_rank);
    part.attention = attention >= 0;
    part.tp_size = options.layout.tp_size();
    part.tp_rank = part.attention ? options.layout.tp_rank(attention) : 0;
    if (expert >= 0 && model.n_layers > model.n_dense_layers)
        for (const Placement& placement : options.placements) {
            const std::span<const int> experts = placement.experts(expert);
            part.experts.emplace_back(experts.begin(), experts.end());
        }
    return part;
}

void send_rounded_rows(ExchangeOptions& exchange, const WeightSource& source,
                       const Kernels& kernels) {
    if (exchange.dtype != DType::f32) return;
    const ModelConfig& model = source.config();
    for (const TensorSpec& spec : model_tensors(model)) {
        if (!spec.is_expert || spec.name.ends_with("/w2")) continue;
        const std::optional<TensorInfo> info = source.find(spec.name);
        if (!info || kernels.row_dtype(info->dtype, model.dim) != DType::bf16) return;
    }
    exchange.dtype = DType::bf16;
    exchange.f32_replies = true;
}

FabricOptions single_rank_fabric(const ModelConfig& model, int64_t max_tokens,
                                 int num_micro_batches) {
    const int node_of_rank[] = {0};
    FabricOptions options{
        .layout = make_layout({.mode = LayoutMode::colocated, .tp_size = 1}, node_of_rank),
        .placements = {},
        .exchange = {.num_micro_batches = num_micro_batches, .dtype = DType::f32},
        .max_tokens = max_tokens,
        .num_draft_rounds = static_cast<int>(model.n_mtp_layers)};
    if (model.n_routed_experts > 0)
        options.placements = {contiguous_placement(static_cast<int>(model.n_routed_experts), 1)};
    return options;
}

}  // namespace ferry
