#include "layers/indexer.h"

#include <algorithm>

namespace ferry {
namespace {

constexpr float kKeyNormEps = 1e-6f;
constexpr int64_t kScoreBytes = 16 << 20;

}  // namespace

Indexer::Indexer(WeightLoader& loader, const std::string& prefix)
    : num_heads_(loader.config().index_n_heads),
      head_dim_(loader.config().index_head_dim),
      rope_interleave_(loader.config().index_rope_interleave),
      wq_b_(loader.linear(prefix + "wq_b")),
      wk_(loader.linear(prefix + "wk")),
      weights_(loader.linear_f32(prefix + "weights")),
      k_norm_(loader.plain(prefix + "k_norm")),
      k_norm_bias_(loader.plain(prefix + "k_norm_bias")) {}

void Indexer::write_keys(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                         const StepBatch& batch, const Tensor& rope_table,
                         const Tensor& keys) const {
    const Workspace::Scope scope(workspace);
    const Tensor k = workspace.take(DType::f32, {batch.num_tokens(), head_dim_});
    wk_.forward(kernels, x, k);
    kernels.layer_norm(k, k_norm_, k_norm_bias_, kKeyNormEps, k);
    kernels.rope(k.reshape({k.rows(), 1, head_dim_}), 0, batch.positions, rope_table,
                 rope_interleave_);
    kernels.write_cache(k, batch.slots, keys);
}

Indexer::Queries Indexer::take_queries(Workspace& workspace, int64_t tokens) const {
    return {.q = workspace.take(DType::f32, {tokens, num_heads_, head_dim_}),
            .weights = workspace.take(DType::f32, {tokens, num_heads_})};
}

void Indexer::make_queries(Kernels& kernels, const LinearInput& x, const LinearInput& c,
                           std::span<const int32_t> positions, const Tensor& rope_table,
                           const Queries& queries) const {
    const Tensor& q = queries.q;
    wq_b_.forward(kernels, c, q.reshape({q.rows(), num_heads_ * head_dim_}));
    kernels.rope(q, 0, positions, rope_table, rope_interleave_);
    weights_.forward(kernels, x, queries.weights);
}

int64_t Indexer::weight_bytes() const {
    return wq_b_.weight().size_bytes() + wk_.weight().size_bytes() + weights_.weight().size_bytes();
}

int64_t Indexer::rows_at_once(int64_t tokens, int64_t context) {
    return std::clamp<int64_t>(kScoreBytes / (4 * context), 1, tokens);
}

int64_t Indexer::workspace_bytes(const ModelConfig& c, int64_t tokens, int64_t context) {
    const int64_t queries = tokens * c.index_n_heads * (c.index_head_dim + 1);
    const int64_t keys = tokens * c.index_head_dim;
    return 4 * (queries + std::max(keys, rows_at_once(tokens, context) * context));
}

}  // namespace ferry
