// [3] One transformer block, in the pieces that an attention rank runs between exchanges:
//   h += attention(norm(h));  x = norm(h);  dense: h += mlp(x);  MoE: routing = gate(x), h +=
//   shared(x) + experts
#pragma once
#include <optional>

#include "layers/gate.h"
#include "layers/mla.h"
#include "layers/mlp.h"

namespace ferry {

class Block {
  public:
    Block(WeightLoader& loader, int64_t layer, const ModelPart& part, const Numerics& numerics);

    bool is_moe() const { return gate_.has_value(); }
    bool has_shared() const { return is_moe() && mlp_.has_value(); }

    // h += attention(norm(h)); x = norm(h), what the MLP, the gate and the experts read. h, x
    // [tokens, dim].
    void attend(Kernels& kernels, Workspace& workspace, const Tensor& h, const StepBatch& batch,
                const Tensor& rope_table, const LayerCache& cache, const Tensor& x,
                MlaForm form = MlaForm::by_row) const;
    // attend() in two halves, for a step of which only some rows go on: the latents of all its
    // rows, then the rest for the rows that `batch` has. The same bits.
    void write_latents(Kernels& kernels, Workspace& workspace, const Tensor& h,
                       const StepBatch& batch, const Tensor& rope_table,
                       const LayerCache& cache) const;
    void attend_written(Kernels& kernels, Workspace& workspace, const Tensor& h,
                        const StepBatch& batch, const Tensor& rope_table, const LayerCache& cache,
                        const Tensor& x, MlaForm form = MlaForm::by_row) const;
    // x = norm(h) alone, of rows that were attended to before: the same bits.
    void norm_ffn(Kernels& kernels, const Tensor& h, const Tensor& x) const;
    const Gate& gate() const { return *gate_; }
    // The dense MLP or the shared experts.
    const Mlp& mlp() const { return *mlp_; }
    const Mla& mla() const { return mla_; }

  private:
    OwnedTensor attn_norm_, ffn_norm_;
    Mla mla_;
    std::optional<Gate> gate_;
    std::optional<Mlp> mlp_;
    float eps_;
};

}  // namespace ferry
