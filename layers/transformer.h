// [2] The part of a model that one rank holds: embedding, blocks and head of an attention rank,
// routed experts of an expert rank, or all of it.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "layers/block.h"
#include "layers/experts.h"
#include "layers/mtp.h"

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
    // logits [rows, vocabulary slice] = head(norm(h)), h being what comes out of `layer`: the last
    // one or the multi-token-prediction module's.
    void head(Kernels& kernels, Workspace& workspace, const Tensor& h, int64_t layer,
              const Tensor& logits) const;
    // Of a model with n_mtp_layers: Mtp::input() of rows that come out of `layer`.
    void mtp_input(Kernels& kernels, Workspace& workspace, const Tensor& embedded, const Tensor& h,
                   int64_t layer, const Tensor& x) const;

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
    const Tensor& norm_after(int64_t layer) const {
        return layer < config_.n_layers ? norm_.view() : mtp_->head_norm();
    }

    ModelConfig config_;
    ModelPart part_;
    Numerics numerics_;
    OwnedTensor embedding_, norm_;
    Linear head_;
    std::vector<Block> blocks_;     // of num_blocks(); empty on a rank without attention
    std::vector<Experts> experts_;  // alike; without experts for dense layers
    std::optional<Mtp> mtp_;
    int64_t weight_bytes_ = 0;
};

}  // namespace ferry
