// [12] One step of an attention rank: embedding, blocks, head. DESIGN.md section 3 in code.
#pragma once
#include "comm/staging.h"
#include "layers/transformer.h"
#include "runtime/expert_worker.h"
#include "runtime/latent_cache.h"
#include "runtime/micro_batches.h"
#include "runtime/rank_fabric.h"

namespace ferry {

struct WorkerLimits {
    int64_t max_tokens = 512;     // rows of one step
    int64_t max_sequences = 512;  // sequences in one step
    int64_t max_context = 4096;   // positions of one sequence
    int64_t max_logit_rows = 32;  // rows whose logits are wanted in one step
    int64_t num_pages = 64;       // of the latent cache
};

class AttentionWorker {
  public:
    // Allocates everything that a step needs. `model` and `fabric` must outlive the worker;
    // `experts` is this rank's expert side, null when it has none.
    AttentionWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric,
                    ExpertWorker* experts, const WorkerLimits& limits);

    // Of the block of intermediate activations.
    static size_t workspace_bytes(const ModelConfig& config, const Numerics& numerics,
                                  int64_t tp_size, const WorkerLimits& limits);

    // Computes the batch, which may have no rows, and writes its latents to the cache. All
    // attention ranks take every step together. `say` is this rank's part of what all agree on.
    struct Result {
        Tensor logits;     // [logit rows, vocab] in host memory, valid until the next step
        Agreement agreed;  // of this step; `say` when there is nobody to agree with
    };
    Result step(const StepBatch& batch, Agreement say = {});
    // For tests: compute every row in one form, or as the batch says.
    void set_form(MlaForm form) { form_ = form; }

    LatentCache& cache() { return cache_; }

  private:
    void start_layer(int64_t layer, int micro_batch, Agreement say);
    Agreement finish_layer(int64_t layer, int micro_batch);
    void run_mlp(const Mlp& mlp, const Tensor& x, const Tensor& y);
    Tensor logits_on_host(int64_t num_rows);
    void run_head(std::span<const int32_t> rows, int micro_batch);
    Tensor rows_of(const OwnedTensor& buffer, int micro_batch) const;
    int64_t cache_bytes_read(const StepBatch& batch) const;  // of one layer

    Kernels& kernels_;
    const Transformer& model_;
    RankFabric& fabric_;
    ExpertWorker* experts_;
    LatentCache cache_;
    OwnedTensor rope_table_;
    OwnedTensor hidden_;    // [max_tokens, dim] residual stream
    OwnedTensor ffn_out_;   // [max_tokens, dim] dense MLP or shared experts
    OwnedTensor combined_;  // [max_tokens, dim] routed experts
    OwnedTensor logits_;    // [max_logit_rows, vocab]
    Stage host_logits_;     // of a device whose memory the host cannot read
    MicroBatches micro_batches_;
    std::vector<int64_t> vocab_offsets_;  // of embedding and head over the TP group
    Workspace workspace_;
    MlaForm form_ = MlaForm::by_row;
};

}  // namespace ferry
