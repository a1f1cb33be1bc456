// [4] Which tokens a token attends to: the lightning indexer of DeepSeek Sparse Attention
// (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, section 2; GLM-5).
//
//   q = wq_b c, c being the normed latent that attention's own queries are made of; k =
//   LayerNorm(wk x); both with their first qk_rope_head_dim columns rotated. w = weights x. Token t
//   scores token s <= t with sum over heads h of w_h relu(q_h . k_s) and attends to the index_topk
//   highest.
//
// The published factors index_head_dim^-1/2 and index_n_heads^-1/2 change no order and are left
// out, as are the Hadamard transform of q and k, which changes no product, and their fp8.
#pragma once
#include "layers/batch.h"
#include "layers/linear.h"

namespace ferry {

class Indexer {
  public:
    // `prefix`: "layers/3/attn/indexer/".
    Indexer(WeightLoader& loader, const std::string& prefix);

    // Of every row of a batch: what it scores with.
    struct Queries {
        Tensor q;        // [tokens, index_n_heads, index_head_dim]
        Tensor weights;  // [tokens, index_n_heads]
    };

    // Writes the batch's keys to `keys`, [pages, kPageTokens, index_head_dim]. x [tokens, dim].
    void write_keys(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                    const StepBatch& batch, const Tensor& rope_table, const Tensor& keys) const;
    // Memory for them, of the workspace's scope.
    Queries take_queries(Workspace& workspace, int64_t tokens) const;
    // c: rows [tokens, q_lora_rank].
    void make_queries(Kernels& kernels, const LinearInput& x, const LinearInput& c,
                      std::span<const int32_t> positions, const Tensor& rope_table,
                      const Queries& queries) const;

    // The dtypes of the weights that multiply x, and c.
    DType key_dtype() const { return wk_.dtype(); }
    DType query_dtype() const { return wq_b_.dtype(); }
    int64_t weight_bytes() const;
    // What make_queries and write_keys take for so many rows, and Kernels::select_keys for scores.
    static int64_t workspace_bytes(const ModelConfig& config, int64_t tokens, int64_t context);
    // Rows that select_keys scores at once over so many positions.
    static int64_t rows_at_once(int64_t tokens, int64_t context);

  private:
    int64_t num_heads_, head_dim_;
    bool rope_interleave_;
    Linear wq_b_, wk_, weights_;
    OwnedTensor k_norm_, k_norm_bias_;
};

}  // namespace ferry
