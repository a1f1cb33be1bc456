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
    return Transformer::workspace_bytes(c, numerics, tokens, limits.max_context, limits.expansion,
                                        0) +
           static_cast<size_t>(4 * tokens * (5 + 3 * c.n_mtp_layers) * c.dim + routing + head +
                               kSlack);
}

int64_t AttentionWorker::expanded_unit_bytes(const ModelConfig& config,
                                             const KvExpansion& expansion) {
    return Mla::expanded_values(config) * size_bytes(expansion.dtype);
}

int64_t AttentionWorker::num_expanded_units(const ModelConfig& config, const WorkerLimits& limits) {
    return std::min(limits.expanded_bytes / expanded_unit_bytes(config, limits.expansion),
                    limits.expanded_positions * config.n_layers);
}

namespace {

WorkerLimits with_expansion(WorkerLimits limits, const KvExpansion& expansion) {
    limits.expansion = expansion;
    return limits;
}

OwnedTensor room_for_expanded(Device& device, const ModelConfig& config,
                              const WorkerLimits& limits) {
    return {device,
            limits.expansion.dtype,
            {AttentionWorker::num_expanded_units(config, limits), Mla::expanded_values(config)}};
}

HiddenRows hidden_rows(Kernels& kernels, const ModelConfig& config, const WorkerLimits& limits,
                       int64_t max_tokens) {
    return {kernels.device(), config, max_tokens,
            std::min(limits.max_context, kernels.kv_expansion(config).positions)};
}

std::span<const int32_t> slice(std::span<const int32_t> rows, Range range) {
    return rows.subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.num));
}

}  // namespace

AttentionWorker::AttentionWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric,
                                 ExpertWorker* experts, const WorkerLimits& limits)
    : kernels_(kernels),
      model_(model),
      fabric_(fabric),
      experts_(experts),
      cache_(kernels.device(), model.config(), model.numerics(), limits.num_pages),
      expanded_(room_for_expanded(kernels.device(), model.config(),
                                  with_expansion(limits, kernels.kv_expansion(model.config())))),
      rope_table_(make_rope_table(model.config(), limits.max_context, kernels.device())),
      hidden_(hidden_rows(kernels, model.config(), limits, limits.max_tokens)),
      wanted_(kernels.device(), DType::f32, {limits.max_logit_rows, model.config().dim}),
      drafted_(kernels.device(), DType::f32,
               {model.config().n_mtp_layers > 0 ? limits.max_tokens : 0, model.config().dim}),
      ffn_out_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      combined_(kernels.device(), DType::f32, {limits.max_tokens, model.config().dim}),
      logits_(kernels.device(), DType::f32, {limits.max_logit_rows, model.config().vocab_size}),
      micro_batches_(fabric.num_micro_batches(), limits.max_tokens, limits.max_sequences,
                     limits.max_logit_rows),
      not_begun_(std::min(limits.max_tokens, limits.max_sequences)),
      ahead_(hidden_rows(kernels, model.config(), limits, looks_ahead() ? limits.max_tokens : 0),
             limits.max_sequences),
      workspace_(kernels.device(),
                 workspace_bytes(model.config(), model.numerics(), model.part().tp_size,
                                 with_expansion(limits, kernels.kv_expansion(model.config()))),
                 model.numerics()),
      filled_(std::min(limits.max_tokens, limits.max_logit_rows)) {
    if (limits.cuda_graphs && why_no_step_is_repeated().empty())
        graphs_ = kernels.make_step_graphs(model.config());
    num_keys_.reserve(static_cast<size_t>(limits.max_sequences));
    const int64_t tp_size = model.part().tp_size;
    for (int64_t rank = 0; rank <= tp_size; ++rank)
        vocab_offsets_.push_back(rank == tp_size
                                     ? model.config().vocab_size
                                     : vocab_slice(model.config().vocab_size, rank, tp_size).begin);
}

HiddenRows::Rows AttentionWorker::rows_of(int micro_batch) const {
    return hidden_.rows(micro_batches_.first_row(micro_batch),
                        micro_batches_.batch(micro_batch).num_tokens());
}

bool AttentionWorker::works_on_wanted(const ModelConfig& config, int64_t layer) {
    return layer + 1 == config.num_blocks() && layer > config.n_dense_layers &&
           (config.index_topk == 0 || config.has_indexer(layer));
}

Tensor AttentionWorker::wanted_rows(int micro_batch) const {
    const Range rows = micro_batches_.logit_rows(micro_batch);
    return wanted_.view().slice_rows(rows.begin, rows.num);
}

// The rows that a layer works on.
HiddenRows::Rows AttentionWorker::rows_of_layer(int64_t layer, int micro_batch) const {
    if (!works_on_wanted(model_.config(), layer)) return rows_of(micro_batch);
    const Tensor h = wanted_rows(micro_batch);
    return {h, hidden_.rows(micro_batches_.first_row(micro_batch), h.rows()).choice};
}

// As many rows of a buffer for all of the step's.
Tensor AttentionWorker::ffn_rows(const OwnedTensor& buffer, int64_t layer, int micro_batch) const {
    return buffer.view().slice_rows(micro_batches_.first_row(micro_batch),
                                    rows_of_layer(layer, micro_batch).h.rows());
}

bool AttentionWorker::looks_ahead() const {
    return fabric_.has_exchange() && experts_ == nullptr && fabric_.num_micro_batches() > 1 &&
           fabric_.options().blocks == nullptr;
}

AttentionWorker::Result AttentionWorker::step(const StepBatch& batch, const StepOptions& options) {
    progress_state().step.fetch_add(1, std::memory_order_relaxed);
    const Tensor logits =
        logits_.view().slice_rows(0, static_cast<int64_t>(batch.logit_rows.size()));
    Result result{logits, {}};
    if (const StepForm form = form_of_step(batch, options); form.num_rows > 0) {
        result.agreed = repeat(batch, form, options.say);
    } else {
        {
            ScopedZone zone(Zone::schedule);
            micro_batches_.split(batch);
        }
        result.agreed = run(batch, options);
    }
    if (repeats_with_others()) next_form_ = agreed_form(result.agreed);
    return result;
}

Agreement AttentionWorker::run(const StepBatch& batch, const StepOptions& options) {
    if (options.num_begun > 0) ahead_.swap(hidden_, options.num_begun);
    ahead_.clear();
    // Ping-pong: while the rows of one micro-batch travel and go through their experts, the others
    // compute. The first runs ahead to its first exchange, and the head of each runs as soon as it
    // is through, so that experts idle as little as can be between steps; meanwhile rows of the
    // next step begin.
    Agreement agreed = options.say;
    const int num = micro_batches_.num();
    const int64_t first = model_.config().n_dense_layers, num_layers = model_.config().n_layers;
    for (int mb = 0; mb < num; ++mb) {
        const int64_t begin = micro_batches_.first_row(mb);
        const int64_t end = begin + micro_batches_.batch(mb).num_tokens();
        if (options.num_begun <= begin) {
            begin_rows(micro_batches_.batch(mb), rows_of(mb), mb);
        } else {
            not_begun_.take(batch, std::min(options.num_begun, end), end);
            begin_rows(not_begun_.batch(),
                       hidden_.rows(not_begun_.first_row(), not_begun_.batch().num_tokens()), mb);
        }
        if (first < num_layers) start_first_exchange(first, mb, options.say);
    }
    for (int64_t layer = first + 1; layer < num_layers; ++layer)
        for (int mb = 0; mb < num; ++mb) {
            agreed = finish_exchange(layer - 1, mb);
            start_layer(batch, layer, mb, options.say);
            if (!options.next_rows) continue;
            if (layer == first + 1 && mb == 0) start_ahead(options.next_rows(), agreed.max);
            begin_ahead((mb + 1) % num);
        }
    for (int mb = 0; mb < num; ++mb) {
        if (first < num_layers) agreed = finish_exchange(num_layers - 1, mb);
        const Range rows = run_head(batch.logit_rows, num_layers - 1, mb);
        if (!options.next_rows || mb + 1 == num) continue;
        if (options.logits_ready) {
            ahead_.grow(options.logits_ready(logits_.view().slice_rows(rows.begin, rows.num),
                                             rows.begin, rows.begin + rows.num));
            begin_rows(ahead_.slice(), ahead_.slice_rows(), -1);
        }
        begin_ahead(mb + 1);
    }
    return agreed;
}

Tensor AttentionWorker::draft(const StepBatch& batch, std::span<const int32_t> rows, bool of_step) {
    const int64_t layer = model_.config().n_layers;  // the module's block
    const Tensor h = hidden_.h().slice_rows(0, batch.num_tokens());
    {
        ScopedZone zone(Zone::embed);
        const Tensor before = drafted_.view().slice_rows(0, batch.num_tokens());
        kernels_.gather_rows(of_step ? hidden_.h() : wanted_.view(), rows, before);
        const Workspace::Scope scope(workspace_);
        const Tensor embedded = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
        fabric_.tensor_parallel().lookup_rows(batch.tokens, model_.embedding(), vocab_offsets_,
                                              embedded);
        model_.mtp_input(kernels_, workspace_, embedded, before, of_step ? layer - 1 : layer, h);
    }
    micro_batches_.split(batch);
    for (int mb = 0; mb < micro_batches_.num(); ++mb) start_layer(batch, layer, mb, {});
    for (int mb = 0; mb < micro_batches_.num(); ++mb) {
        finish_exchange(layer, mb);
        run_head(batch.logit_rows, layer, mb);
    }
    return logits_.view().slice_rows(0, static_cast<int64_t>(batch.logit_rows.size()));
}

std::string_view AttentionWorker::why_no_step_is_repeated() const {
    if (model_.config().n_mtp_layers > 0 && fabric_.layout().num_ranks() > 1)
        return "drafts of several ranks are";
    if (!fabric_.has_exchange())
        return fabric_.tensor_parallel().size() == 1
                   ? ""
                   : "a tensor-parallel group without experts has no exchange to agree by";
    if (fabric_.exchange().max_repeated_tokens() == 0)
        return "rows or their counts go through the host";
    return {};
}

// Who watches stages needs them one by one.
bool AttentionWorker::may_repeat(int64_t num_rows, std::span<const int64_t> num_keys) const {
    if (form_ != MlaForm::by_row || trace().observer() != nullptr) return false;
    const int64_t rows = std::min(filled_rows(num_rows), filled_.max_rows());
    const int64_t largest = ceil_div(rows, micro_batches_.num());
    if (num_rows > rows || !graphs_->takes(num_keys)) return false;
    return !fabric_.has_exchange() || largest <= fabric_.exchange().max_repeated_tokens();
}

Agreement AttentionWorker::say_next(bool only_generates, std::span<const int64_t> num_keys) const {
    const auto num_rows = static_cast<int64_t>(num_keys.size());
    if (!only_generates || !may_repeat(num_rows, num_keys)) return {.any = 0, .max = kAnyForm};
    if (num_keys.empty()) return {};
    return say_form(form_of(num_rows, filled_.max_rows(), std::ranges::max(num_keys)));
}

// {}: it is launched kernel by kernel.
StepForm AttentionWorker::form_of_step(const StepBatch& batch, const StepOptions& options) {
    if (graphs_ == nullptr) return {};
    if (repeats_with_others()) return next_form_;
    if (!is_decode_step(batch) || options.num_begun > 0 || options.next_rows) return {};
    num_keys_.clear();
    for (const int32_t position : batch.positions) num_keys_.push_back(position + 1);
    if (!may_repeat(batch.num_tokens(), num_keys_)) return {};
    return form_of(batch.num_tokens(), filled_.max_rows(), std::ranges::max(num_keys_));
}

// What differs from step to step is brought to the GPU.
void AttentionWorker::begin_repeated_step(const StepBatch& filled, int64_t num_rows,
                                          Agreement say) {
    std::vector<int64_t> num_tokens;
    for (int mb = 0; mb < micro_batches_.num(); ++mb) {
        StepBatch part = micro_batches_.batch(mb);
        part.logit_rows = slice(filled.logit_rows, micro_batches_.logit_rows(mb));
        kernels_.begin_step(part);
        num_tokens.push_back(
            std::clamp<int64_t>(num_rows - micro_batches_.first_row(mb), 0, part.num_tokens()));
    }
    if (fabric_.has_exchange())
        fabric_.exchange().attention()->begin_repeated_step(
            say, num_tokens, ceil_div(filled.num_tokens(), micro_batches_.num()));
}

Agreement AttentionWorker::repeat(const StepBatch& batch, const StepForm& form, Agreement say) {
    FERRY_CHECK(batch.num_tokens() == 0 || is_decode_step(batch),
                "a step of {} rows, some of prompts, instead of {} generated ones",
                batch.num_tokens(), form.num_rows);
    const StepBatch& filled = filled_.fill(batch, form);
    {
        ScopedZone zone(Zone::schedule);
        micro_batches_.split(filled);
    }
    ScopedZone zone(Zone::graph);
    graphs_->begin(form);
    begin_repeated_step(filled, batch.num_tokens(), say);
    fabric_.tensor_parallel().expect_equal_rows(true);  // the form's, of every micro-batch
    graphs_->run([&] { run(filled, {}); });
    fabric_.tensor_parallel().expect_equal_rows(false);
    return fabric_.has_exchange() ? fabric_.exchange().attention()->end_repeated_step() : say;
}

LayerCache AttentionWorker::layer_cache(int64_t layer, const KeyChoice& choice) const {
    return {cache_.layer(layer), cache_.index_keys(layer), expanded_, choice, layer};
}

int64_t AttentionWorker::cache_bytes_read(int64_t layer, const StepBatch& batch) const {
    const ModelConfig& c = model_.config();
    int64_t values = 0;
    for (const std::span<const SequenceRows> sequences : {batch.prompt, batch.generated})
        for (const SequenceRows& rows : sequences) {
            const int64_t keys = rows.end_position();
            values += std::min(keys, c.dense_positions()) * c.latent_dim();
            if (keys > c.dense_positions() && c.has_indexer(layer))
                values += keys * c.index_head_dim;
        }
    return values * size_bytes(model_.numerics().cache_dtype);
}

bool AttentionWorker::has_no_rows(const StepBatch& batch) const {
    return batch.num_tokens() == 0 && fabric_.tensor_parallel().size() == 1;
}

// All that comes before the first exchange: embedding, dense layers, attention of the first MoE
// layer.
void AttentionWorker::begin_rows(const StepBatch& batch, const Rows& rows, int micro_batch) {
    if (has_no_rows(batch)) return;
    const Tensor& h = rows.h;
    embed(batch, h, micro_batch);
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    const int64_t num_dense = model_.config().n_dense_layers;
    for (int64_t layer = 0; layer < num_dense; ++layer) {
        attend(layer, batch, rows, x, micro_batch);
        run_dense(layer, x, h, micro_batch);
    }
    if (num_dense < model_.config().n_layers) attend(num_dense, batch, rows, x, micro_batch);
}

// Rows of the next step, at most `most` on any rank. From now on a step passes a point after each
// micro-batch of each layer, and after each micro-batch's head but the last.
void AttentionWorker::start_ahead(const StepBatch& batch, int64_t most) {
    const ModelConfig& config = model_.config();
    const int64_t num = micro_batches_.num();
    const int64_t num_points = (config.n_layers - config.n_dense_layers) * num - 1;
    ahead_.start(batch, AheadPieces::plan(most, config.n_dense_layers, num, num_points),
                 num_points);
}

// What is due, and more of it for as long as the micro-batch that comes next is with its experts,
// unless others of a tensor-parallel group must take part.
void AttentionWorker::begin_ahead(int next_micro_batch) {
    ahead_.pass_point();
    const bool alone = fabric_.tensor_parallel().size() == 1;
    while (ahead_.has_piece() &&
           (ahead_.is_due() ||
            (alone && !fabric_.exchange().attention()->combine_ready(next_micro_batch))))
        begin_piece(ahead_.take_piece());
}

void AttentionWorker::begin_piece(const AheadPieces::Piece& piece) {
    const StepBatch& batch = ahead_.slice();
    if (has_no_rows(batch)) return;
    const Rows rows = ahead_.slice_rows();
    const Tensor& h = rows.h;
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    if (piece.dense) {
        model_.block(piece.layer).norm_ffn(kernels_, h, x);
        run_dense(piece.layer, x, h, -1);
        return;
    }
    if (piece.layer == 0) embed(batch, h, -1);
    attend(piece.layer, batch, rows, x, -1);
}

void AttentionWorker::embed(const StepBatch& batch, const Tensor& h, int micro_batch) {
    ScopedZone zone(Zone::embed, -1, micro_batch);
    fabric_.tensor_parallel().lookup_rows(batch.tokens, model_.embedding(), vocab_offsets_, h);
}

// h += mlp(x).
void AttentionWorker::run_dense(int64_t layer, const Tensor& x, const Tensor& h, int micro_batch) {
    const Mlp& mlp = model_.block(layer).mlp();
    ScopedZone zone(Zone::dense, static_cast<int>(layer), micro_batch);
    zone.bytes = mlp.weight_bytes();
    const Workspace::Scope scope(workspace_);
    const Tensor y = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    run_mlp(mlp, x, y);
    kernels_.add(y, h);
}

// h += attention(norm(h)); x = norm(h).
void AttentionWorker::attend(int64_t layer, const StepBatch& batch, const Rows& rows,
                             const Tensor& x, int micro_batch) {
    if (rows.h.rows() == 0) return;
    const Block& block = model_.block(layer);
    ScopedZone zone(Zone::attention, static_cast<int>(layer), micro_batch);
    zone.bytes = block.mla().weight_bytes() + cache_bytes_read(layer, batch);
    block.attend(kernels_, workspace_, rows.h, batch, rope_table_, layer_cache(layer, rows.choice),
                 x, form_);
}

// The first MoE layer of rows that begin_rows() has brought to it.
void AttentionWorker::start_first_exchange(int64_t layer, int micro_batch, Agreement say) {
    const Tensor h = rows_of(micro_batch).h;
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {h.rows(), h.dim(1)});
    {
        ScopedZone zone(Zone::norm, static_cast<int>(layer), micro_batch);
        model_.block(layer).norm_ffn(kernels_, h, x);
    }
    start_exchange(layer, micro_batch, x, say);
}

void AttentionWorker::start_layer(const StepBatch& step, int64_t layer, int micro_batch,
                                  Agreement say) {
    const Rows rows = rows_of_layer(layer, micro_batch);
    const Workspace::Scope scope(workspace_);
    const Tensor x = workspace_.take(DType::f32, {rows.h.rows(), rows.h.dim(1)});
    if (works_on_wanted(model_.config(), layer)) {
        gather_wanted(step.logit_rows, micro_batch);
        attend_wanted(layer, micro_batch, rows, x);
    } else {
        attend(layer, micro_batches_.batch(micro_batch), rows, x, micro_batch);
    }
    start_exchange(layer, micro_batch, x, say);
}

// Latents of all rows of the micro-batch, attention of those whose logits are wanted.
void AttentionWorker::attend_wanted(int64_t layer, int micro_batch, const Rows& rows,
                                    const Tensor& x) {
    const StepBatch& all = micro_batches_.batch(micro_batch);
    const StepBatch& wanted = micro_batches_.wanted(micro_batch);
    if (wanted.num_tokens() == all.num_tokens()) {
        attend(layer, all, rows, x, micro_batch);
        return;
    }
    const Block& block = model_.block(layer);
    ScopedZone zone(Zone::attention, static_cast<int>(layer), micro_batch);
    zone.bytes = block.mla().weight_bytes() + cache_bytes_read(layer, wanted);
    const LayerCache cache = layer_cache(layer, rows.choice);
    block.write_latents(kernels_, workspace_, rows_of(micro_batch).h, all, rope_table_, cache);
    if (wanted.num_tokens() > 0)
        block.attend_written(kernels_, workspace_, rows.h, wanted, rope_table_, cache, x, form_);
}

// The feed-forward part of a MoE layer on x, all of it that needs no other rank's answer.
void AttentionWorker::start_exchange(int64_t layer, int micro_batch, const Tensor& x,
                                     Agreement say) {
    const Block& block = model_.block(layer);
    const int zone_layer = static_cast<int>(layer);
    const int64_t topk = model_.config().n_activated_experts;
    const Routing routing{.experts = workspace_.take(DType::i32, {x.rows(), topk}),
                          .weights = workspace_.take(DType::f32, {x.rows(), topk})};
    {
        ScopedZone zone(Zone::gate, zone_layer, micro_batch);
        zone.bytes = 4 * model_.config().dim * model_.config().n_routed_experts;
        block.gate().forward(kernels_, workspace_, x, routing);
    }
    if (layer < model_.config().n_layers) routing_recorder().add(zone_layer, routing.experts);
    fabric_.exchange().attention()->dispatch(zone_layer, micro_batch, x, routing, say);
    if (block.has_shared()) {
        ScopedZone zone(Zone::shared, zone_layer, micro_batch);
        zone.bytes = block.mlp().weight_bytes();
        run_mlp(block.mlp(), x, ffn_rows(ffn_out_, layer, micro_batch));
    }
}

// h += shared experts + routed experts, once these are back.
Agreement AttentionWorker::finish_exchange(int64_t layer, int micro_batch) {
    const Block& block = model_.block(layer);
    const Tensor h = rows_of_layer(layer, micro_batch).h;
    const Tensor y = ffn_rows(ffn_out_, layer, micro_batch);
    const Tensor routed = ffn_rows(combined_, layer, micro_batch);
    const Agreement agreed = fabric_.exchange().combine(
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

// The group computes the rows of all its members, each rank its slices of the inner dimension.
void AttentionWorker::run_mlp(const Mlp& mlp, const Tensor& x, const Tensor& y) {
    TensorParallel& group = fabric_.tensor_parallel();
    const Tensor rows = group.gather_rows(x).rows;
    const Workspace::Scope scope(workspace_);
    const Tensor parts = workspace_.take(DType::f32, {mlp.num_slices(), rows.rows(), rows.dim(1)});
    mlp.partial(kernels_, workspace_, rows, parts);
    group.reduce_scatter(parts, y);
}

void AttentionWorker::gather_wanted(std::span<const int32_t> logit_rows, int micro_batch) {
    kernels_.gather_rows(hidden_.h(), slice(logit_rows, micro_batches_.logit_rows(micro_batch)),
                         wanted_rows(micro_batch));
}

// Logits of those rows of the step that lie in the micro-batch; returns which logit rows they are.
Range AttentionWorker::run_head(std::span<const int32_t> logit_rows, int64_t layer,
                                int micro_batch) {
    ScopedZone zone(Zone::head, -1, micro_batch);
    zone.bytes = model_.head_bytes();
    const Range wanted = micro_batches_.logit_rows(micro_batch);
    if (!works_on_wanted(model_.config(), layer)) gather_wanted(logit_rows, micro_batch);
    const Workspace::Scope scope(workspace_);
    TensorParallel& group = fabric_.tensor_parallel();
    const Tensor all = group.gather_rows(wanted_rows(micro_batch)).rows;
    const int64_t columns =
        vocab_slice(model_.config().vocab_size, model_.part().tp_rank, model_.part().tp_size).num;
    const Tensor local = workspace_.take(DType::f32, {all.rows(), columns});
    model_.head(kernels_, workspace_, all, layer, local);
    group.scatter_columns(local, vocab_offsets_,
                          logits_.view().slice_rows(wanted.begin, wanted.num));
    return wanted;
}

}  // namespace ferry
