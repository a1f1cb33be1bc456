#include "layers/block.h"

namespace ferry {

Block::Block(WeightLoader& loader, int64_t layer, const ModelPart& part, const Numerics& numerics)
    : attn_norm_(loader.plain(block_prefix(loader.config(), layer) + "attn_norm")),
      ffn_norm_(loader.plain(block_prefix(loader.config(), layer) + "ffn_norm")),
      mla_(loader, layer),
      eps_(static_cast<float>(loader.config().norm_eps)) {
    const ModelConfig& c = loader.config();
    const std::string ffn = block_prefix(c, layer) + "ffn/";
    if (!c.is_moe_layer(layer)) {
        mlp_.emplace(loader, ffn, c.inter_dim, part, numerics);
        return;
    }
    gate_.emplace(loader, ffn + "gate/");
    if (c.n_shared_experts > 0)
        mlp_.emplace(loader, ffn + "shared/", c.n_shared_experts * c.moe_inter_dim, part, numerics);
}

void Block::attend(Kernels& kernels, Workspace& workspace, const Tensor& h, const StepBatch& batch,
                   const Tensor& rope_table, const LayerCache& cache, const Tensor& x,
                   MlaForm form) const {
    const Workspace::Scope scope(workspace);
    const Tensor y = workspace.take(DType::f32, {h.rows(), h.dim(1)});
    kernels.rms_norm(h, attn_norm_, eps_, x);
    mla_.forward(kernels, workspace, x, batch, rope_table, cache, y, form);
    kernels.add_rms_norm(y, h, ffn_norm_, eps_, x);
}

void Block::write_latents(Kernels& kernels, Workspace& workspace, const Tensor& h,
                          const StepBatch& batch, const Tensor& rope_table,
                          const LayerCache& cache) const {
    const Workspace::Scope scope(workspace);
    const Tensor x = workspace.take(DType::f32, {h.rows(), h.dim(1)});
    kernels.rms_norm(h, attn_norm_, eps_, x);
    mla_.write_latents(kernels, workspace, x, batch, rope_table, cache);
}

void Block::attend_written(Kernels& kernels, Workspace& workspace, const Tensor& h,
                           const StepBatch& batch, const Tensor& rope_table,
                           const LayerCache& cache, const Tensor& x, MlaForm form) const {
    const Workspace::Scope scope(workspace);
    const Tensor y = workspace.take(DType::f32, {h.rows(), h.dim(1)});
    kernels.rms_norm(h, attn_norm_, eps_, x);
    mla_.attend(kernels, workspace, x, batch, rope_table, cache, y, form);
    kernels.add_rms_norm(y, h, ffn_norm_, eps_, x);
}

void Block::norm_ffn(Kernels& kernels, const Tensor& h, const Tensor& x) const {
    kernels.rms_norm(h, ffn_norm_, eps_, x);
}

}  // namespace ferry
