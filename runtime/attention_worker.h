// [12] One step of an attention rank: embedding, blocks, head. DESIGN.md section 3 in code.
#pragma once
#include <functional>

#include "layers/transformer.h"
#include "runtime/expert_worker.h"
#include "runtime/filled_step.h"
#include "runtime/hidden_rows.h"
#include "runtime/latent_cache.h"
#include "runtime/micro_batches.h"
#include "runtime/rank_fabric.h"
#include "runtime/rows_ahead.h"

namespace ferry {

struct WorkerLimits {
    int64_t max_tokens = 512;     // rows of one step
    int64_t max_sequences = 512;  // sequences in one step
    int64_t max_context = 4096;   // positions of one sequence
    int64_t max_logit_rows = 32;  // rows whose logits are wanted in one step
    int64_t num_pages = 64;       // of the latent cache
    // For prompts that stay expanded (ExpandedPrompt): at most so much memory, and as much as so
    // many positions take.
    int64_t expanded_bytes = 0;
    int64_t expanded_positions = 0;
    bool cuda_graphs = false;  // decode steps are repeated where a GPU can
    KvExpansion expansion{};   // of the kernels; for plan_memory, a worker asks its own
};

class AttentionWorker {
  public:
    // Allocates everything that a step needs. `model` and `fabric` must outlive the worker;
    // `experts` is this rank's expert side, null when it has none.
    AttentionWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric,
                    ExpertWorker* experts, const WorkerLimits& limits);

    // KvExpansion::positions.
    int64_t expanded_positions() const { return kernels_.kv_expansion(model_.config()).positions; }
    // Whether a layer's latents are of all rows of a step, and the rest of what it computes only of
    // those whose logits are wanted: the last block, unless it is the first MoE layer, where the
    // next step's rows begin, or goes by a choice of keys that an earlier one made, for all rows.
    static bool works_on_wanted(const ModelConfig& config, int64_t layer);

    // Of the block of intermediate activations, with the kernels' way to expand K and V in
    // `limits`.
    static size_t workspace_bytes(const ModelConfig& config, const Numerics& numerics,
                                  int64_t tp_size, const WorkerLimits& limits);

    // What prompts can stay expanded in, with the kernels' way to expand K and V in `limits`: units
    // of one position in one layer, of so many bytes.
    static int64_t num_expanded_units(const ModelConfig& config, const WorkerLimits& limits);
    static int64_t expanded_unit_bytes(const ModelConfig& config, const KvExpansion& expansion);
    int64_t num_expanded_units() const { return expanded_.view().rows(); }

    // Where a step can begin the next one's rows: experts are elsewhere and compute meanwhile. Not
    // where rows travel from GPU to GPU: what is agreed reaches the host once a step only.
    bool looks_ahead() const;

    // Called in a step that looks ahead: once when all have agreed, for rows with which the next
    // step begins, at most agreed.max of them on any rank. Then, if asked for, whenever logits of
    // some rows are there before the others', logits [begin, end) of the step, for the same rows
    // and what follows them now.
    using NextRows = std::function<StepBatch()>;
    using LogitsReady = std::function<StepBatch(const Tensor& logits, int64_t begin, int64_t end)>;
    struct StepOptions {
        // This rank's part of what all agree on; max: rows that it may begin, or what say_next()
        // has.
        Agreement say;
        int64_t num_begun = 0;  // leading rows of the batch that the step before has begun
        NextRows next_rows;
        LogitsReady logits_ready;
    };
    struct Result {
        // [logit rows, vocab] in the memory of the kernels' device, valid until the next step.
        Tensor logits;
        Agreement agreed;  // of this step; `say` when there is nobody to agree with
    };
    // Whether steps may be repeated (StepGraphs); else why not, as a clause for people.
    bool repeats_steps() const { return graphs_ != nullptr; }
    std::string_view why_no_step_is_repeated() const;
    StepGraphs::Counts step_counts() const {
        return graphs_ != nullptr ? graphs_->counts() : StepGraphs::Counts{};
    }

    // Of a model with n_mtp_layers, after step() or another draft(): logits of the tokens after the
    // next ones, by layers/mtp.h. `batch` lists rows that came out of it (`rows`; of draft() those
    // whose logits were wanted, numbered as its logits), with the tokens behind them, as generated
    // rows at their own places. What it writes are the module's own latents. All attention ranks
    // together.
    Tensor draft(const StepBatch& batch, std::span<const int32_t> rows, bool of_step);

    // Computes the batch, which may have no rows, and writes its latents to the cache. All
    // attention ranks take every step together.
    Result step(const StepBatch& batch, const StepOptions& options);
    Result step(const StepBatch& batch) { return step(batch, StepOptions{}); }

    // Steps that are repeated where several ranks take part (filled_step.h): all of them know the
    // form of the next step by the end of the one before. {}: any batch may come.
    StepForm next_form() const { return next_form_; }
    bool repeats_with_others() const {
        return graphs_ != nullptr && fabric_.layout().num_ranks() > 1;
    }
    // To be added to StepOptions::say of each step then: the next step has rows of sequences that
    // generate only, at most as many as `num_keys` has, which says how many keys each of them has.
    Agreement say_next(bool only_generates, std::span<const int64_t> num_keys) const;
    // For tests: compute every row in one form, or as the batch says.
    void set_form(MlaForm form) { form_ = form; }

    LatentCache& cache() { return cache_; }

  private:
    Agreement run(const StepBatch& batch, const StepOptions& options);
    bool may_repeat(int64_t num_rows, std::span<const int64_t> num_keys) const;
    StepForm form_of_step(const StepBatch& batch, const StepOptions& options);
    Agreement repeat(const StepBatch& batch, const StepForm& form, Agreement say);
    void begin_repeated_step(const StepBatch& filled, int64_t num_rows, Agreement say);
    using Rows = HiddenRows::Rows;
    void begin_rows(const StepBatch& batch, const Rows& rows, int micro_batch);
    void start_ahead(const StepBatch& batch, int64_t most);
    void begin_ahead(int next_micro_batch);
    void begin_piece(const AheadPieces::Piece& piece);
    bool has_no_rows(const StepBatch& batch) const;
    void embed(const StepBatch& batch, const Tensor& h, int micro_batch);
    void run_dense(int64_t layer, const Tensor& x, const Tensor& h, int micro_batch);
    void attend(int64_t layer, const StepBatch& batch, const Rows& rows, const Tensor& x,
                int micro_batch);
    void start_first_exchange(int64_t layer, int micro_batch, Agreement say);
    void start_layer(const StepBatch& step, int64_t layer, int micro_batch, Agreement say);
    void attend_wanted(int64_t layer, int micro_batch, const Rows& rows, const Tensor& x);
    void start_exchange(int64_t layer, int micro_batch, const Tensor& x, Agreement say);
    Agreement finish_exchange(int64_t layer, int micro_batch);
    void run_mlp(const Mlp& mlp, const Tensor& x, const Tensor& y);
    void gather_wanted(std::span<const int32_t> logit_rows, int micro_batch);
    Range run_head(std::span<const int32_t> logit_rows, int64_t layer, int micro_batch);
    Rows rows_of(int micro_batch) const;
    Tensor wanted_rows(int micro_batch) const;
    Rows rows_of_layer(int64_t layer, int micro_batch) const;
    Tensor ffn_rows(const OwnedTensor& buffer, int64_t layer, int micro_batch) const;
    LayerCache layer_cache(int64_t layer, const KeyChoice& choice) const;
    int64_t cache_bytes_read(int64_t layer, const StepBatch& batch) const;

    Kernels& kernels_;
    const Transformer& model_;
    RankFabric& fabric_;
    ExpertWorker* experts_;
    LatentCache cache_;
    OwnedTensor expanded_;  // [units, Mla::expanded_values()] of prompts that stay expanded
    OwnedTensor rope_table_;
    HiddenRows hidden_;
    OwnedTensor wanted_;    // [max_logit_rows, dim] the same of rows whose logits are wanted
    OwnedTensor drafted_;   // [max_tokens, dim] of rows that drafts are made of
    OwnedTensor ffn_out_;   // [max_tokens, dim] dense MLP or shared experts
    OwnedTensor combined_;  // [max_tokens, dim] routed experts
    OwnedTensor logits_;    // [max_logit_rows, vocab]
    MicroBatches micro_batches_;
    StepPart not_begun_;  // of a micro-batch
    RowsAhead ahead_;
    std::vector<int64_t> vocab_offsets_;  // of embedding and head over the TP group
    Workspace workspace_;
    MlaForm form_ = MlaForm::by_row;
    FilledStep filled_;
    std::unique_ptr<StepGraphs> graphs_;  // null: every step is launched kernel by kernel
    StepForm next_form_;
    std::vector<int64_t> num_keys_;  // of the step's rows
};

}  // namespace ferry
