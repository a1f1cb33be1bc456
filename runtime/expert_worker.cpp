#include "runtime/expert_worker.h"

#include <algorithm>

#include "base/trace.h"
#include "comm/progress_state.h"
#include "runtime/filled_step.h"

namespace ferry {

int64_t ExpertWorker::max_rows(const ModelConfig& config, const ModelPart& part,
                               const FabricOptions& options) {
    int64_t slots = 0;
    for (const auto& experts : part.experts)
        slots = std::max(slots, static_cast<int64_t>(experts.size()));
    return options.layout.num_attention() * options.max_tokens *
           std::min(slots, config.n_activated_experts);
}

ExpertWorker::ExpertWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric)
    : kernels_(kernels),
      model_(model),
      fabric_(fabric),
      workspace_(kernels.device(),
                 Experts::workspace_bytes(model.config(),
                                          max_rows(model.config(), model.part(), fabric.options())),
                 model.numerics()),
      max_rows_(max_rows(model.config(), model.part(), fabric.options())),
      lateness_ns_(static_cast<size_t>(fabric.layout().num_attention())) {}

void ExpertWorker::note(const ExpertBatch& batch) {
    ++num_batches_;
    if (batch.arrived_ns.empty()) return;  // known to the GPU only
    const int64_t first = std::ranges::min(batch.arrived_ns);
    for (size_t rank = 0; rank < lateness_ns_.size(); ++rank)
        lateness_ns_[rank] += batch.arrived_ns[rank] - first;
}

namespace {

// An exchange that leaves the counts on the GPU gives as many rows as can ever come.
GroupOffsets groups_of(const ExpertBatch& batch) {
    if (!batch.device_offsets.empty()) return {batch.device_offsets, true};
    return {batch.offsets};
}

}  // namespace

const Tensor& ExpertWorker::compute(const ExpertBatch& batch) {
    ScopedZone zone(Zone::experts, batch.layer, batch.micro_batch);
    note(batch);
    for (size_t slot = 0; slot + 1 < batch.offsets.size(); ++slot)
        if (batch.offsets[slot + 1] > batch.offsets[slot])
            zone.bytes += model_.experts(batch.layer).weight_bytes_per_expert();
    output_ = batch.rows;
    const GroupOffsets groups = groups_of(batch);
    if (groups.offsets.size() < 2) return output_;  // no experts of this layer are here
    const Tensor rows = batch.rows.slice_rows(
        0, groups.on_device ? std::min(batch.rows.rows(), max_rows_) : groups.offsets.back());
    if (rows.rows() == 0) return output_;
    const Experts& experts = model_.experts(batch.layer);
    if (batch.received.count() > 0 && experts.takes_wire_rows(workspace_)) {
        experts.forward(kernels_, workspace_, batch.received, groups, rows);
    } else {
        decode_rows(batch, &kernels_.threads());
        experts.forward(kernels_, workspace_, rows, groups, rows);
    }
    return output_;
}

void ExpertWorker::run() {
    if (!fabric_.has_exchange()) return;
    for (bool more = true; more;) {
        if (next_form_.num_rows > 0)
            repeat_step();
        else
            more = run_step();
    }
}

void ExpertWorker::begin_step() {
    progress_state().step.fetch_add(1, std::memory_order_relaxed);
    progress_state().publish(trace());
}

// Batches up to the next first one of a step, in whatever order they come. False: there are none
// any more.
bool ExpertWorker::run_step() {
    ExpertSide& side = *fabric_.exchange().experts();
    const int first_layer = static_cast<int>(model_.config().n_dense_layers);
    const int last_layer = static_cast<int>(model_.config().n_layers) - 1;
    for (;;) {
        ScopedZone step(Zone::step);
        const ExpertBatch* batch = side.receive();
        if (batch == nullptr) return false;
        if (batch->layer == first_layer && batch->micro_batch == 0) begin_step();
        const bool last =
            batch->layer == last_layer && batch->micro_batch + 1 == fabric_.num_micro_batches();
        const StepForm next = form_in(batch->agreed);
        side.reply(compute(*batch));
        if (last && next.num_rows > 0) {
            next_form_ = next;
            return true;
        }
    }
}

// In the form that all ranks agreed on in the step before.
void ExpertWorker::repeat_step() {
    ScopedZone step(Zone::step);
    begin_step();
    ScopedZone zone(Zone::graph);
    ExpertSide& side = *fabric_.exchange().experts();
    const int64_t num_micro_batches = fabric_.num_micro_batches();
    const int64_t num_layers = model_.config().n_layers - model_.config().n_dense_layers;
    if (graphs_ == nullptr) graphs_ = kernels_.make_step_graphs(model_.config());
    graphs_->begin(next_form_);
    side.begin_repeated_step(ceil_div(next_form_.num_rows, num_micro_batches));
    graphs_->run([&] {
        for (int64_t i = 0; i < num_layers * num_micro_batches; ++i)
            side.reply(compute(*side.receive()));
    });
    next_form_ = form_in(side.end_repeated_step());
}

// Where rows go through the host, ranks agree on other things.
StepForm ExpertWorker::form_in(Agreement agreed) const {
    return fabric_.exchange().max_repeated_tokens() > 0 ? agreed_form(agreed) : StepForm{};
}

}  // namespace ferry
