#include "runtime/expert_worker.h"

#include <algorithm>

#include "base/trace.h"
#include "comm/progress_state.h"

namespace ferry {
namespace {

// The most rows that one batch can bring: every attention rank's tokens to every slot that a token
// can choose here.
int64_t max_rows(const Transformer& model, const RankFabric& fabric) {
    int64_t slots = 0;
    for (const auto& experts : model.part().experts)
        slots = std::max(slots, static_cast<int64_t>(experts.size()));
    return fabric.layout().num_attention() * fabric.options().max_tokens *
           std::min(slots, model.config().n_activated_experts);
}

}  // namespace

ExpertWorker::ExpertWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric)
    : kernels_(kernels),
      model_(model),
      fabric_(fabric),
      workspace_(kernels.device(),
                 Experts::workspace_bytes(model.config(), max_rows(model, fabric)),
                 model.numerics()),
      lateness_ns_(static_cast<size_t>(fabric.layout().num_attention())) {}

void ExpertWorker::note(const ExpertBatch& batch) {
    const int64_t first = std::ranges::min(batch.arrived_ns);
    for (size_t rank = 0; rank < lateness_ns_.size(); ++rank)
        lateness_ns_[rank] += batch.arrived_ns[rank] - first;
    ++num_batches_;
}

const Tensor& ExpertWorker::compute(const ExpertBatch& batch) {
    ScopedZone zone(Zone::experts, batch.layer, batch.micro_batch);
    note(batch);
    for (size_t slot = 0; slot + 1 < batch.offsets.size(); ++slot)
        if (batch.offsets[slot + 1] > batch.offsets[slot])
            zone.bytes += model_.experts(batch.layer).weight_bytes_per_expert();
    output_ = batch.rows;
    if (batch.rows.rows() > 0)
        model_.experts(batch.layer)
            .forward(kernels_, workspace_, batch.rows, batch.offsets, batch.rows);
    return output_;
}

void ExpertWorker::run() {
    if (!fabric_.has_exchange()) return;
    ExpertSide& side = *fabric_.exchange().experts();
    while (const ExpertBatch* batch = side.receive()) {
        if (batch->layer == model_.config().n_dense_layers && batch->micro_batch == 0) {
            progress_state().step.fetch_add(1, std::memory_order_relaxed);
            progress_state().publish(trace());
        }
        side.reply(compute(*batch));
    }
}

}  // namespace ferry
