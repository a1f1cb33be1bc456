// [12] One step of an attention rank: embedding, blocks, head. DESIGN.md section 3 in code.
#pragma once
#include "layers/moe.h"
#include "layers/transformer.h"
#include "runtime/latent_cache.h"

namespace ferry {

struct WorkerLimits {
    int64_t max_tokens = 512;     // rows of one step
    int64_t max_context = 4096;   // positions of one sequence
    int64_t max_logit_rows = 32;  // rows whose logits are wanted in one step
    int64_t num_pages = 64;       // of the latent cache
};

class AttentionWorker {
  public:
    // Allocates everything that a step needs. `model` must outlive the worker.
    AttentionWorker(Kernels& kernels, const Transformer& model, const WorkerLimits& limits);

    // Computes the batch, writes its latents to the cache, returns logits [logit rows, vocab]
    // (valid until the next step).
    Tensor step(const StepBatch& batch);
    // For tests: compute every row in one form, or as the batch says.
    void set_form(MlaForm form) { form_ = form; }

    LatentCache& cache() { return cache_; }

  private:
    void run_block(int64_t layer, const Tensor& h, const StepBatch& batch);
    void run_moe(const Block& block, int64_t layer, const Tensor& x, const Tensor& y);

    Kernels& kernels_;
    const Transformer& model_;
    WorkerLimits limits_;
    LatentCache cache_;
    OwnedTensor rope_table_;
    OwnedTensor hidden_;  // [max_tokens, dim]
    OwnedTensor logits_;  // [max_logit_rows, vocab]
    Workspace workspace_;
    ExpertOrder expert_order_;
    MlaForm form_ = MlaForm::by_row;
};

}  // namespace ferry
