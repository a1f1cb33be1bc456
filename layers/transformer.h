// [2] The part of a model that one rank holds: embedding, blocks and head of an attention rank,
// routed experts of an expert rank, or all of it.
#pragma once
#include <memory>
#include <vector>

#include "layers/block.h"
#include "layers/experts.h"

namespace ferry {

// The vocabulary rows that a TP rank holds of embedding and head.
Range vocab_slice(int64_t vocab_size, int64_t tp_rank, int64_t tp_size);

class Transformer {
  public:
    Transformer(WeightLoader& loader, const ModelPart& part, const Numerics& numerics);

    const ModelConfig& config() const { return config_; }
    const ModelPart& part() const { return part_; }
    const Numerics& numerics() const { return numerics_; }
    const Block& block(int64_t layer) const { return blocks_[static_cast<size_t>(layer)]; }
    // Of a MoE layer.
    const Experts& experts(int64_t layer) const { return experts_[static_cast<size_t>(layer)]; }

    // [vocabulary slice, dim], f32 or bf16.
    const Tensor& embedding() const { return embedding_.view(); }
    // logits [rows, vocabulary slice] = head(norm(h)).
    void head(Kernels& kernels, Workspace& workspace, const Tensor& h, const Tensor& logits) const;

    // Workspace for any step of at most `tokens` rows, over contexts of at most `context`
    // positions, with the kernels' kv_expansion().
    static size_t workspace_bytes(const ModelConfig& config, const Numerics& numerics,
                                  int64_t tokens, int64_t context, const KvExpansion& expansion,
                                  int64_t expert_rows);
    int64_t head_bytes() const { return head_.weight().size_bytes(); }
    // Bytes of weights held.
    int64_t weight_bytes() const { return weight_bytes_; }

  private:
    void load_vocabulary(WeightLoader& loader);

    ModelConfig config_;
    ModelPart part_;
    Numerics numerics_;
    OwnedTensor embedding_, norm_;
    Linear head_;
    std::vector<Block> blocks_;     // empty on a rank without attention
    std::vector<Experts> experts_;  // per layer; without experts for dense layers
    int64_t weight_bytes_ = 0;
};

}  // namespace ferry
