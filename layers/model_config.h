// [1] The shape of a DeepSeek-style model: every number that the layers need, and nothing of files.
#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace ferry {

enum class ScoreFunc { softmax, sigmoid };

// YaRN scaling of RoPE (Peng et al. 2023, as DeepSeek uses it).
struct YarnConfig {
    double factor = 1;
    int64_t original_max_positions = 4096;
    double beta_fast = 32;
    double beta_slow = 1;
    double mscale = 1;
    double mscale_all_dim = 0;
};

// What a file calls fields of ModelConfig; those that are not there it calls as we do.
using FieldNames = std::map<std::string_view, std::string_view>;

struct ModelConfig {
    int64_t vocab_size = 0;
    int64_t dim = 0;
    int64_t inter_dim = 0;  // dense MLP
    int64_t moe_inter_dim =
        0;  // one routed expert; shared experts are n_shared_experts times as wide
    int64_t n_layers = 0;
    int64_t n_dense_layers = 0;  // the first layers have a dense MLP
    int64_t max_positions = 4096;

    // MLA
    int64_t n_heads = 0;
    int64_t q_lora_rank = 0;  // 0: q is one projection
    int64_t kv_lora_rank = 0;
    int64_t qk_nope_head_dim = 0;
    int64_t qk_rope_head_dim = 0;
    int64_t v_head_dim = 0;
    double rope_theta = 10000;
    bool rope_interleave = true;  // pairs (2i, 2i+1); false: (i, i + r/2)
    std::optional<YarnConfig> yarn{};
    double norm_eps = 1e-6;  // of blocks and the last norm (layers/mla.cpp: of latents)

    // Sparse attention (layers/indexer.h): a token attends to the index_topk tokens before it that
    // score highest. 0: to all.
    int64_t index_topk = 0;
    int64_t index_n_heads = 0;
    int64_t index_head_dim = 0;
    bool index_rope_interleave = false;
    // A letter for each of n_layers: "F" has an indexer, "S" takes the keys that the last layer
    // before it with one chose (https://arxiv.org/abs/2603.12201; GLM-5.2). Empty: all have one.
    std::string index_topk_pattern{};

    // MoE
    int64_t n_routed_experts = 0;
    int64_t n_shared_experts = 0;
    int64_t n_activated_experts = 0;  // top-k
    int64_t n_expert_groups = 1;
    int64_t n_limited_groups = 1;  // groups kept
    ScoreFunc score_func = ScoreFunc::softmax;
    bool has_gate_bias = false;
    bool norm_topk_prob = false;
    double routed_scaling_factor = 1;

    bool tie_word_embeddings = false;

    // Of the multi-token-prediction modules that it comes with, those that run: 0 or 1. Its block
    // counts as layer n_layers.
    int64_t n_mtp_layers = 0;

    bool is_moe_layer(int64_t layer) const { return layer >= n_dense_layers; }
    int64_t num_blocks() const { return n_layers + n_mtp_layers; }
    int64_t num_moe_blocks() const { return num_blocks() - n_dense_layers; }
    int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
    int64_t latent_dim() const { return kv_lora_rank + qk_rope_head_dim; }
    // Leading positions of a sequence that attend to all before them.
    int64_t dense_positions() const {
        return index_topk > 0 ? index_topk : std::numeric_limits<int64_t>::max();
    }
    // Whether it chooses keys itself.
    bool has_indexer(int64_t layer) const;
    // Of num_blocks().
    int64_t num_indexers() const;
    // (nope + rope)^-1/2, times m(factor, mscale_all_dim)^2 under YaRN.
    double softmax_scale() const;

    // Parameters in all, and those that one token uses (routed experts counted top-k times).
    int64_t num_parameters() const;
    int64_t num_active_parameters() const;

    // Throws Error(checkpoint) naming the first impossible field as `names` has it, prefixed with
    // `where`.
    void validate(const std::string& where, const FieldNames& names = {}) const;
};

}  // namespace ferry
