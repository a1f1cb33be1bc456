// [4] Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1;
// MODEL.md "MLA").
#pragma once
#include <vector>

#include "layers/batch.h"
#include "layers/linear.h"

namespace ferry {

// Which form computes which rows. `by_row` is what runs; the others are for tests.
enum class MlaForm { by_row, naive, absorb };

class Mla {
  public:
    // `prefix`: "layers/3/attn/".
    Mla(WeightLoader& loader, const std::string& prefix);

    // y = wo(attention(x)): x, y [tokens, dim] f32. Writes the batch's latents to `cache` [pages,
    // 64, kv_lora + rope], then attends to it: keys are always read back as the cache stores them.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                 const Tensor& rope_table, const Tensor& cache, const Tensor& y,
                 MlaForm form = MlaForm::by_row) const;

    // forward() in two halves, for a step of which only some rows are asked for: the latents of
    // all its rows, then y of the rows that `batch` has, in whatever part of the step. The same
    // bits.
    void write_latents(Kernels& kernels, Workspace& workspace, const Tensor& x,
                       const StepBatch& batch, const Tensor& rope_table, const Tensor& cache) const;
    void attend(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                const Tensor& rope_table, const Tensor& cache, const Tensor& y,
                MlaForm form = MlaForm::by_row) const;

    // Bytes of weights that one step reads, and workspace for a step of `tokens` rows over
    // `context` positions, with the kernels' kv_expansion().
    int64_t weight_bytes() const;
    static size_t workspace_bytes(const ModelConfig& config, int64_t tokens, int64_t context,
                                  const KvExpansion& expansion);

  private:
    void load_wkv_b(WeightLoader& loader, const std::string& name);
    // The dtype of the weight that makes queries of x.
    DType query_dtype() const { return config_.q_lora_rank > 0 ? wq_a_.dtype() : wq_.dtype(); }
    void write_latents(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                       const StepBatch& batch, const Tensor& rope_table, const Tensor& cache) const;
    void attend(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                const StepBatch& batch, const Tensor& rope_table, const Tensor& cache,
                const Tensor& y, MlaForm form) const;
    // Queries [tokens, heads, nope + rope], rope applied.
    void project(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                 const StepBatch& batch, const Tensor& rope_table, const Tensor& q) const;
    void attend_naive(Kernels& kernels, Workspace& workspace, const Tensor& q, const Tensor& cache,
                      const SequenceRows& rows, const Tensor& out) const;
    void attend_absorbed(Kernels& kernels, Workspace& workspace, const Tensor& q,
                         const Tensor& cache, std::span<const SequenceRows> sequences,
                         const Tensor& out) const;

    ModelConfig config_;
    KvExpansion expansion_;
    Linear wq_, wq_a_, wq_b_, wkv_a_, wo_;
    OwnedTensor q_norm_, kv_norm_;
    // wkv_b three times: a few heads per matrix for the expanded form (bounds the memory of K and
    // V), and per head W_k^T [kv_lora, nope] and W_v [v, kv_lora] for the absorbed form.
    std::vector<Linear> wkv_b_;
    Weight absorbed_k_, absorbed_v_;
};

}  // namespace ferry
