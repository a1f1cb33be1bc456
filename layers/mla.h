// [4] Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1;
// MODEL.md "MLA").
#pragma once
#include <optional>
#include <vector>

#include "layers/batch.h"
#include "layers/indexer.h"
#include "layers/layer_cache.h"
#include "layers/linear.h"

namespace ferry {

// Which form computes which rows. `by_row` is what runs; the others are for tests.
enum class MlaForm { by_row, naive, absorb };

class Mla {
  public:
    Mla(WeightLoader& loader, int64_t layer);

    // y = wo(attention(x)): x, y [tokens, dim] f32. Writes the batch's latents to `cache`, and keys
    // and values of prompts that stay expanded, then attends to it: keys are always read back as
    // the cache stores them. The same bits whether a prompt stays expanded or not, on the CPU; on a
    // GPU as far as products do not depend on the number of their rows.
    //
    // Sparse attention: rows of a prompt from KvExpansion::positions on are SequenceRows of their
    // own (Scheduler) and take the absorbed form, each over the keys that it chose, which are put
    // into `cache`; without an indexer over those that are there.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                 const Tensor& rope_table, const LayerCache& cache, const Tensor& y,
                 MlaForm form = MlaForm::by_row) const;

    // forward() in two halves, for a step of which only some rows are asked for: what is written
    // of all its rows, then y of the rows that `batch` has, in whatever part of the step. The same
    // bits.
    void write_latents(Kernels& kernels, Workspace& workspace, const Tensor& x,
                       const StepBatch& batch, const Tensor& rope_table,
                       const LayerCache& cache) const;
    void attend(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                const Tensor& rope_table, const LayerCache& cache, const Tensor& y,
                MlaForm form = MlaForm::by_row) const;

    // Bytes of weights that one step reads, and workspace for a step of `tokens` rows over
    // `context` positions, with the kernels' kv_expansion().
    int64_t weight_bytes() const;
    static size_t workspace_bytes(const ModelConfig& config, int64_t tokens, int64_t context,
                                  const KvExpansion& expansion);
    // Of a position of a prompt that stays expanded, in one layer: keys and values of all heads and
    // the rotated part, of the type of KvExpansion.
    static int64_t expanded_values(const ModelConfig& config);

  private:
    void load_wkv_b(WeightLoader& loader, const std::string& name);
    // The dtype of the weight that makes queries of x.
    DType query_dtype() const { return config_.q_lora_rank > 0 ? wq_a_.dtype() : wq_.dtype(); }
    DType key_dtype() const { return indexer_ ? indexer_->key_dtype() : wkv_a_.dtype(); }
    void write_latents(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                       const StepBatch& batch, const Tensor& rope_table,
                       const LayerCache& cache) const;
    void attend(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                const StepBatch& batch, const Tensor& rope_table, const LayerCache& cache,
                const Tensor& y, MlaForm form) const;
    // What rows attend with: queries [tokens, heads, nope + rope], rope applied, and, where some
    // choose their keys here, the indexer's.
    struct Queries {
        Tensor q;
        std::optional<Indexer::Queries> index;
        int64_t max_positions = 0, most_keys = 0;  // of the cache, and as StepBatch's
    };
    Queries project(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                    const StepBatch& batch, const Tensor& rope_table) const;
    bool chooses(const SequenceRows& rows) const {
        return rows.end_position() > config_.dense_positions();
    }
    void select(Kernels& kernels, Workspace& workspace, const Queries& queries,
                const LayerCache& cache, std::span<const SequenceRows> sequences,
                bool as_masks) const;
    bool some_choose(std::span<const SequenceRows> sequences, int64_t most_keys) const;
    void attend_prompts(Kernels& kernels, Workspace& workspace, const Queries& queries,
                        const LayerCache& cache, std::span<const SequenceRows> sequences,
                        const Tensor& out) const;
    void attend_naive(Kernels& kernels, Workspace& workspace, const Tensor& q, const Tensor& mask,
                      const LayerCache& cache, std::span<const SequenceRows> sequences,
                      const Tensor& out) const;
    void attend_rebuilt(Kernels& kernels, Workspace& workspace, const Tensor& q, const Tensor& mask,
                        const LayerCache& cache, std::span<const SequenceRows> sequences,
                        int64_t shared, const Tensor& out) const;
    void attend_expanded(Kernels& kernels, const Tensor& q, const Tensor& mask,
                         const LayerCache& cache, const SequenceRows& rows,
                         const Tensor& out) const;
    void expand(Kernels& kernels, Workspace& workspace, const LayerCache& cache,
                const SequenceRows& rows) const;
    // Of a piece of wkv_b_, [positions, heads * (nope + v)] and [positions, rope].
    struct Keys {
        int64_t first_head = 0;
        Tensor kv, rope;
    };
    Keys kept_keys(const LayerCache& cache, const ExpandedPrompt& kept, size_t piece) const;
    void attend_heads(Kernels& kernels, const Tensor& q, const Tensor& mask, const Keys& keys,
                      const SequenceRows& rows, const Tensor& out) const;
    void attend_absorbed(Kernels& kernels, Workspace& workspace, const Queries& queries,
                         const LayerCache& cache, std::span<const SequenceRows> sequences,
                         const Tensor& out) const;

    ModelConfig config_;
    KvExpansion expansion_;
    std::optional<Indexer> indexer_;
    Linear wq_, wq_a_, wq_b_, wkv_a_, wo_;
    OwnedTensor q_norm_, kv_norm_;
    // wkv_b three times: a few heads per matrix for the expanded form (bounds the memory of K and
    // V), and per head W_k^T [kv_lora, nope] and W_v [v, kv_lora] for the absorbed form.
    std::vector<Linear> wkv_b_;
    Weight absorbed_k_, absorbed_v_;
};

}  // namespace ferry
