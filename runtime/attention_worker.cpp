#include "runtime/attention_worker.h"

#include <cstring>

#include "base/trace.h"
#include "layers/rope.h"

namespace ferry {
namespace {

size_t workspace_bytes(const Transformer& model, const WorkerLimits& limits) {
    const ModelConfig& c = model.config();
    const int64_t expert_rows = limits.max_tokens * c.n_activated_experts;
    const size_t moe = static_cast<size_t>(4 * (2 * expert_rows + 4 * limits.max_tokens) * c.dim +
                                           8 * expert_rows + (64 << 10));
    const size_t head = static_cast<size_t>(4 * limits.max_logit_rows * 4 * c.dim);
    return Transformer::workspace_bytes(c, model.numerics(), limits.max_tokens, limits.max_context,
                                        expert_rows) +
           moe + head;
}

}  // namespace

AttentionWorker::AttentionWorker(Kernels& kernels, const Transformer& model,
                                 const WorkerLimits& limits)
    : kernels_(kernels),
      model_(model),
      limits_(limits),
      cache_(kernels.device(), model.config(), model.numerics(), limits.num_pages),
      rope_table_(make_rope_table(model.config(), limits.max_context, kernels.device())),
      hidden_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      logits_(kernels.device(), DType::f32, {limits.max_logit_rows, model.config().vocab_size}),
      workspace_(kernels.device(), workspace_bytes(model, limits), model.numerics()) {
    const size_t rows = static_cast<size_t>(limits.max_tokens * model.config().n_activated_experts);
    expert_order_.offsets.reserve(static_cast<size_t>(model.config().n_routed_experts + 1));
    expert_order_.tokens.reserve(rows);
    expert_order_.row_of.reserve(rows);
}

Tensor AttentionWorker::step(const StepBatch& batch) {
    const Tensor h = hidden_.view().slice_rows(0, batch.num_tokens());
    {
        ScopedZone zone(Zone::embed);
        model_.embed(kernels_, batch.tokens, h);
    }
    for (int64_t layer = 0; layer < model_.config().n_layers; ++layer) run_block(layer, h, batch);

    ScopedZone zone(Zone::head);
    const Workspace::Scope scope(workspace_);
    const int64_t num_logits = static_cast<int64_t>(batch.logit_rows.size());
    const Tensor last = workspace_.take(DType::f32, {num_logits, h.dim(1)});
    for (int64_t i = 0; i < num_logits; ++i)
        std::memcpy(last.row<float>(i), h.row<float>(batch.logit_rows[static_cast<size_t>(i)]),
                    static_cast<size_t>(h.dim(1)) * sizeof(float));
    const Tensor logits = logits_.view().slice_rows(0, num_logits);
    model_.head(kernels_, workspace_, last, logits);
    return logits;
}

void AttentionWorker::run_block(int64_t layer, const Tensor& h, const StepBatch& batch) {
    const Block& block = model_.block(layer);
    {
        ScopedZone zone(Zone::attention, static_cast<int>(layer));
        block.attend(kernels_, workspace_, h, batch, rope_table_, cache_.layer(layer), form_);
    }
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    const Tensor y = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    block.norm_ffn(kernels_, h, x);
    if (block.is_moe()) {
        run_moe(block, layer, x, y);
    } else {
        ScopedZone zone(Zone::dense, static_cast<int>(layer));
        block.mlp().forward(kernels_, workspace_, x, y);
    }
    kernels_.add(y, h);
}

// y = shared(x) + sum of the chosen experts.
void AttentionWorker::run_moe(const Block& block, int64_t layer, const Tensor& x, const Tensor& y) {
    const int64_t topk = model_.config().n_activated_experts;
    const Workspace::Scope scope(workspace_);
    const Routing routing{.experts = workspace_.take(DType::i32, {x.rows(), topk}),
                          .weights = workspace_.take(DType::f32, {x.rows(), topk})};
    {
        ScopedZone zone(Zone::gate, static_cast<int>(layer));
        block.gate().forward(kernels_, workspace_, x, routing);
    }
    const Tensor routed =
        block.has_shared() ? workspace_.take(DType::f32, {x.rows(), x.dim(1)}) : y;
    {
        ScopedZone zone(Zone::experts, static_cast<int>(layer));
        moe_local(kernels_, workspace_, model_.experts(layer), expert_order_, x, routing, routed);
    }
    if (!block.has_shared()) return;
    ScopedZone zone(Zone::shared, static_cast<int>(layer));
    block.mlp().forward(kernels_, workspace_, x, y);
    kernels_.add(routed, y);
}

}  // namespace ferry
