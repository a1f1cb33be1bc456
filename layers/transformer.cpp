#include "layers/transformer.h"

#include <algorithm>

namespace ferry {

Range vocab_slice(int64_t vocab_size, int64_t tp_rank, int64_t tp_size) {
    // In blocks of 128, so that slices of an fp8 head keep whole scale blocks.
    const int64_t blocks = ceil_div(vocab_size, kScaleBlock);
    const int64_t begin = std::min(vocab_size, blocks * tp_rank / tp_size * kScaleBlock);
    const int64_t end = std::min(vocab_size, blocks * (tp_rank + 1) / tp_size * kScaleBlock);
    return {begin, end - begin};
}

Transformer::Transformer(WeightLoader& loader, const ModelPart& part, const Numerics& numerics)
    : config_(loader.config()), part_(part), numerics_(numerics) {
    const int64_t before = loader.bytes_read();
    if (part.attention) {
        load_vocabulary(loader);
        blocks_.reserve(static_cast<size_t>(config_.num_blocks()));
    }
    for (int64_t layer = 0; layer < config_.num_blocks(); ++layer) {
        if (part.attention) {
            const WeightLoader::HeldAlike held_alike(loader, loader.shares().attention);
            blocks_.emplace_back(loader, layer, part, numerics);
        }
        const std::span<const int32_t> held = part.experts_of(config_, layer);
        const std::span<const SharedExpert> shared =
            loader.shares().shared_experts_of(config_, layer);
        if (held.empty() && shared.empty())
            experts_.emplace_back();
        else
            experts_.emplace_back(loader, block_prefix(config_, layer) + "ffn/experts/", held,
                                  shared);
    }
    if (part.attention && config_.n_mtp_layers > 0) {
        const WeightLoader::HeldAlike held_alike(loader, loader.shares().attention);
        mtp_.emplace(loader, block_prefix(config_, config_.n_layers));
    }
    loader.finish();
    weight_bytes_ = loader.bytes_read() - before;
}

void Transformer::load_vocabulary(WeightLoader& loader) {
    {
        const WeightLoader::HeldAlike held_alike(loader, loader.shares().attention);
        norm_ = loader.plain("norm");
    }
    const WeightLoader::HeldAlike held_alike(loader, loader.shares().slice);
    const Range vocab = vocab_slice(config_.vocab_size, part_.tp_rank, part_.tp_size);
    if (config_.tie_word_embeddings) {
        Weight head;
        embedding_ = loader.rows("embed", vocab, &head);
        head_ = Linear(std::move(head));
        return;
    }
    embedding_ = loader.rows("embed", vocab);
    head_ = Linear(loader.linear("head", vocab, {0, config_.dim}));
}

void Transformer::head(Kernels& kernels, Workspace& workspace, const Tensor& h, int64_t layer,
                       const Tensor& logits) const {
    const Workspace::Scope scope(workspace);
    const Tensor x = workspace.take(DType::f32, {h.rows(), h.dim(1)});
    kernels.rms_norm(h, norm_after(layer), static_cast<float>(config_.norm_eps), x);
    head_.forward(kernels, workspace, x, logits);
}

void Transformer::mtp_input(Kernels& kernels, Workspace& workspace, const Tensor& embedded,
                            const Tensor& h, int64_t layer, const Tensor& x) const {
    mtp_->input(kernels, workspace, embedded, h, norm_after(layer), x);
}

size_t Transformer::workspace_bytes(const ModelConfig& c, const Numerics& numerics, int64_t tokens,
                                    int64_t context, const KvExpansion& expansion,
                                    int64_t expert_rows) {
    const size_t activations = static_cast<size_t>(4 * tokens * 4 * c.dim);
    const size_t mlp =
        std::max(Mlp::workspace_bytes(c, numerics, c.inter_dim, tokens),
                 Mlp::workspace_bytes(c, numerics, c.n_shared_experts * c.moe_inter_dim, tokens));
    const size_t gate = static_cast<size_t>(4 * tokens * c.n_routed_experts) + (64 << 10);
    return activations + std::max({Mla::workspace_bytes(c, tokens, context, expansion), mlp, gate,
                                   Experts::workspace_bytes(c, expert_rows)});
}

}  // namespace ferry
