// The fields of a model's shape by name: one list for HDF5 attributes, `ferry inspect` and YAML.
#pragma once
#include "layers/model_config.h"

namespace ferry {

// Calls visit(name, field) for every field but `yarn`; `Config` may be const.
template <typename Config, typename Visit>
void visit_model_fields(Config& c, Visit&& visit) {
    visit("vocab_size", c.vocab_size);
    visit("dim", c.dim);
    visit("inter_dim", c.inter_dim);
    visit("moe_inter_dim", c.moe_inter_dim);
    visit("n_layers", c.n_layers);
    visit("n_dense_layers", c.n_dense_layers);
    visit("max_positions", c.max_positions);
    visit("n_heads", c.n_heads);
    visit("q_lora_rank", c.q_lora_rank);
    visit("kv_lora_rank", c.kv_lora_rank);
    visit("qk_nope_head_dim", c.qk_nope_head_dim);
    visit("qk_rope_head_dim", c.qk_rope_head_dim);
    visit("v_head_dim", c.v_head_dim);
    visit("rope_theta", c.rope_theta);
    visit("rope_interleave", c.rope_interleave);
    visit("norm_eps", c.norm_eps);
    visit("index_topk", c.index_topk);
    visit("index_n_heads", c.index_n_heads);
    visit("index_head_dim", c.index_head_dim);
    visit("index_rope_interleave", c.index_rope_interleave);
    visit("index_topk_pattern", c.index_topk_pattern);
    visit("n_routed_experts", c.n_routed_experts);
    visit("n_shared_experts", c.n_shared_experts);
    visit("n_activated_experts", c.n_activated_experts);
    visit("n_expert_groups", c.n_expert_groups);
    visit("n_limited_groups", c.n_limited_groups);
    visit("score_func", c.score_func);
    visit("has_gate_bias", c.has_gate_bias);
    visit("norm_topk_prob", c.norm_topk_prob);
    visit("routed_scaling_factor", c.routed_scaling_factor);
    visit("tie_word_embeddings", c.tie_word_embeddings);
}

// The same for YaRN.
template <typename Yarn, typename Visit>
void visit_yarn_fields(Yarn& y, Visit&& visit) {
    visit("factor", y.factor);
    visit("original_max_positions", y.original_max_positions);
    visit("beta_fast", y.beta_fast);
    visit("beta_slow", y.beta_slow);
    visit("mscale", y.mscale);
    visit("mscale_all_dim", y.mscale_all_dim);
}

}  // namespace ferry
