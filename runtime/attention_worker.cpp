#include "runtime/attention_worker.h"

#include <algorithm>

#include "base/trace.h"
#include "comm/progress_state.h"
#include "layers/rope.h"
#include "runtime/routing_record.h"

namespace ferry {

size_t AttentionWorker::workspace_bytes(const ModelConfig& c, const Numerics& numerics,
                                        int64_t tp_size, const WorkerLimits& limits) {
    const int64_t tokens = limits.max_tokens * tp_size;  // of a whole TP group
    const int64_t routing = limits.max_tokens * c.n_activated_experts * 8;
    const int64_t head = 4 * limits.max_logit_rows * (4 * c.dim + tp_size * c.vocab_size);
    constexpr int64_t kSlack = 256 << 10;
    return Transformer::workspace_bytes(c, numerics, tokens, limits.max_context, 0) +
           static_cast<size_t>(4 * tokens * 4 * c.dim + routing + head + kSlack);
}

AttentionWorker::AttentionWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric,
                                 ExpertWorker* experts, const WorkerLimits& limits)
    : kernels_(kernels),
      model_(model),
      fabric_(fabric),
      experts_(experts),
      cache_(kernels.device(), model.config(), model.numerics(), limits.num_pages),
      rope_table_(make_rope_table(model.config(), limits.max_context, kernels.device())),
      hidden_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      ffn_out_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      combined_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      logits_(kernels.device(), DType::f32, {limits.max_logit_rows, model.config().vocab_size}),
      host_logits_(kernels.device(), StageSide::host),
      micro_batches_(fabric.num_micro_batches(), limits.max_tokens, limits.max_sequences),
      workspace_(kernels.device(),
                 workspace_bytes(model.config(), model.numerics(), model.part().tp_size, limits),
                 model.numerics()) {
    const int64_t tp_size = model.part().tp_size;
    for (int64_t rank = 0; rank <= tp_size; ++rank)
        vocab_offsets_.push_back(rank == tp_size
                                     ? model.config().vocab_size
                                     : vocab_slice(model.config().vocab_size, rank, tp_size).begin);
}

Tensor AttentionWorker::rows_of(const OwnedTensor& buffer, int micro_batch) const {
    return buffer.view().slice_rows(micro_batches_.first_row(micro_batch),
                                    micro_batches_.batch(micro_batch).num_tokens());
}

AttentionWorker::Result AttentionWorker::step(const StepBatch& batch, Agreement say) {
    progress_state().step.fetch_add(1, std::memory_order_relaxed);
    {
        ScopedZone zone(Zone::schedule);
        micro_batches_.split(batch);
    }
    const Tensor h = hidden_.view().slice_rows(0, batch.num_tokens());
    {
        ScopedZone zone(Zone::embed);
        fabric_.tensor_parallel().lookup_rows(batch.tokens, model_.embedding(), vocab_offsets_, h);
    }
    // Ping-pong: while the rows of one micro-batch travel and go through their experts, the others
    // compute. The first runs ahead to its first exchange, and the head of each runs as soon as it
    // is through, so that experts idle as little as can be between steps.
    Agreement agreed = say;
    const int64_t num_layers = model_.config().n_layers;
    const int64_t ahead = std::min(model_.config().n_dense_layers, num_layers - 1);
    for (int mb = 0; mb < micro_batches_.num(); ++mb)
        for (int64_t layer = 0; layer <= ahead; ++layer) {
            if (layer > 0) finish_layer(layer - 1, mb);
            start_layer(layer, mb, say);
        }
    for (int64_t layer = ahead + 1; layer < num_layers; ++layer)
        for (int mb = 0; mb < micro_batches_.num(); ++mb) {
            finish_layer(layer - 1, mb);
            start_layer(layer, mb, say);
        }
    for (int mb = 0; mb < micro_batches_.num(); ++mb) {
        agreed = finish_layer(num_layers - 1, mb);
        run_head(batch.logit_rows, mb);
    }
    if (!fabric_.has_exchange()) agreed = say;
    return {logits_on_host(static_cast<int64_t>(batch.logit_rows.size())), agreed};
}

Tensor AttentionWorker::logits_on_host(int64_t num_rows) {
    const Tensor logits = logits_.view().slice_rows(0, num_rows);
    if (kernels_.device().type() == DeviceType::cpu) return logits;
    ScopedZone zone(Zone::head);
    return host_logits_.copy_of(logits);
}

int64_t AttentionWorker::cache_bytes_read(const StepBatch& batch) const {
    int64_t tokens = 0;
    for (const std::span<const SequenceRows> sequences : {batch.prompt, batch.generated})
        for (const SequenceRows& rows : sequences) tokens += rows.first_position + rows.num_rows;
    return tokens * model_.config().latent_dim() * size_bytes(model_.numerics().cache_dtype);
}

// Attention, then all of the feed-forward part that needs no other rank's answer.
void AttentionWorker::start_layer(int64_t layer, int micro_batch, Agreement say) {
    const Block& block = model_.block(layer);
    const int zone_layer = static_cast<int>(layer);
    const Tensor h = rows_of(hidden_, micro_batch), y = rows_of(ffn_out_, micro_batch);
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    if (h.rows() > 0) {
        ScopedZone zone(Zone::attention, zone_layer, micro_batch);
        const StepBatch& batch = micro_batches_.batch(micro_batch);
        zone.bytes = block.mla().weight_bytes() + cache_bytes_read(batch);
        block.attend(kernels_, workspace_, h, batch, rope_table_, cache_.layer(layer), x, form_);
    }
    if (!block.is_moe()) {
        ScopedZone zone(Zone::dense, zone_layer, micro_batch);
        zone.bytes = block.mlp().weight_bytes();
        run_mlp(block.mlp(), x, y);
        return;
    }
    const int64_t topk = model_.config().n_activated_experts;
    const Routing routing{.experts = workspace_.take(DType::i32, {h.rows(), topk}),
                          .weights = workspace_.take(DType::f32, {h.rows(), topk})};
    {
        ScopedZone zone(Zone::gate, zone_layer, micro_batch);
        zone.bytes = 4 * model_.config().dim * model_.config().n_routed_experts;
        block.gate().forward(kernels_, workspace_, x, routing);
    }
    routing_recorder().add(zone_layer, routing.experts);
    fabric_.exchange().attention()->dispatch(zone_layer, micro_batch, x, routing, say);
    if (block.has_shared()) {
        ScopedZone zone(Zone::shared, zone_layer, micro_batch);
        zone.bytes = block.mlp().weight_bytes();
        run_mlp(block.mlp(), x, y);
    }
}

// h += dense MLP, or h += shared experts + routed experts, once these are back.
Agreement AttentionWorker::finish_layer(int64_t layer, int micro_batch) {
    const Block& block = model_.block(layer);
    const Tensor h = rows_of(hidden_, micro_batch), y = rows_of(ffn_out_, micro_batch);
    Agreement agreed;
    if (block.is_moe()) {
        const Tensor routed = rows_of(combined_, micro_batch);
        agreed = fabric_.exchange().combine(
            static_cast<int>(layer), micro_batch, routed,
            [this](const ExpertBatch& batch) -> const Tensor& { return experts_->compute(batch); });
        ScopedZone zone(Zone::norm, static_cast<int>(layer), micro_batch);
        if (!block.has_shared()) {
            kernels_.add(routed, h);
            return agreed;
        }
        kernels_.add(routed, y);
        kernels_.add(y, h);
        return agreed;
    }
    ScopedZone zone(Zone::norm, static_cast<int>(layer), micro_batch);
    kernels_.add(y, h);
    return agreed;
}

// The group computes the rows of all its members, each rank its slices of the inner dimension.
void AttentionWorker::run_mlp(const Mlp& mlp, const Tensor& x, const Tensor& y) {
    TensorParallel& group = fabric_.tensor_parallel();
    const Tensor rows = group.gather_rows(x).rows;
    const Workspace::Scope scope(workspace_);
    const Tensor parts = workspace_.take(DType::f32, {mlp.num_slices(), rows.rows(), rows.dim(1)});
    mlp.partial(kernels_, workspace_, rows, parts);
    group.reduce_scatter(parts, y);
}

// Logits of those rows of the step that lie in the micro-batch.
void AttentionWorker::run_head(std::span<const int32_t> rows, int micro_batch) {
    ScopedZone zone(Zone::head, -1, micro_batch);
    zone.bytes = model_.head_bytes();
    const int64_t begin = micro_batches_.first_row(micro_batch);
    const int64_t end = begin + micro_batches_.batch(micro_batch).num_tokens();
    const auto first = std::lower_bound(rows.begin(), rows.end(), begin);
    const auto last = std::lower_bound(first, rows.end(), end);
    const int64_t num_rows = last - first;
    const Workspace::Scope scope(workspace_);
    const Tensor h = hidden_.view();
    const Tensor x = workspace_.take(DType::f32, {num_rows, h.dim(1)});
    kernels_.gather_rows(h, {first, last}, x);
    TensorParallel& group = fabric_.tensor_parallel();
    const Tensor all = group.gather_rows(x).rows;
    const int64_t columns =
        vocab_slice(model_.config().vocab_size, model_.part().tp_rank, model_.part().tp_size).num;
    const Tensor local = workspace_.take(DType::f32, {all.rows(), columns});
    model_.head(kernels_, workspace_, all, local);
    group.scatter_columns(local, vocab_offsets_,
                          logits_.view().slice_rows(first - rows.begin(), num_rows));
}

}  // namespace ferry
