#include "layers/model_config.h"

#include <cmath>

#include "base/error.h"

namespace ferry {
namespace {

double yarn_mscale(double factor, double mscale) {
    return factor > 1 ? 0.1 * mscale * std::log(factor) + 1 : 1;
}

int64_t attention_parameters(const ModelConfig& c) {
    const int64_t q = c.q_lora_rank == 0
                          ? c.dim * c.n_heads * c.qk_head_dim()
                          : c.q_lora_rank * (c.dim + c.n_heads * c.qk_head_dim() + 1);
    const int64_t kv = c.dim * c.latent_dim() + c.kv_lora_rank +
                       c.kv_lora_rank * c.n_heads * (c.qk_nope_head_dim + c.v_head_dim);
    const int64_t index = c.index_topk == 0
                              ? 0
                              : c.index_n_heads * (c.q_lora_rank * c.index_head_dim + c.dim) +
                                    c.index_head_dim * (c.dim + 2);
    // + wo, two block norms
    return c.n_layers * (q + kv + c.n_heads * c.v_head_dim * c.dim + 2 * c.dim) +
           (c.num_indexers() - c.n_mtp_layers) * index;
}

int64_t parameters(const ModelConfig& c, int64_t experts_used) {
    const int64_t expert = 3 * c.dim * c.moe_inter_dim;
    const int64_t gate = c.n_routed_experts * (c.dim + (c.has_gate_bias ? 1 : 0));
    const int64_t n_moe_layers = c.n_layers - c.n_dense_layers;
    return attention_parameters(c) + c.n_dense_layers * 3 * c.dim * c.inter_dim +
           n_moe_layers * ((experts_used + c.n_shared_experts) * expert + gate) +
           (c.tie_word_embeddings ? 1 : 2) * c.vocab_size * c.dim + c.dim;
}

}  // namespace

bool ModelConfig::has_indexer(int64_t layer) const {
    // A module's block always has.
    return index_topk > 0 && (layer >= static_cast<int64_t>(index_topk_pattern.size()) ||
                              index_topk_pattern[static_cast<size_t>(layer)] == 'F');
}

int64_t ModelConfig::num_indexers() const {
    int64_t num = 0;
    for (int64_t layer = 0; layer < num_blocks(); ++layer) num += has_indexer(layer) ? 1 : 0;
    return num;
}

double ModelConfig::softmax_scale() const {
    double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim()));
    if (yarn) {
        const double m = yarn_mscale(yarn->factor, yarn->mscale_all_dim);
        scale *= m * m;
    }
    return scale;
}

int64_t ModelConfig::num_parameters() const {
    return parameters(*this, n_routed_experts);
}
int64_t ModelConfig::num_active_parameters() const {
    return parameters(*this, n_activated_experts);
}

void ModelConfig::validate(const std::string& where, const FieldNames& names) const {
    const auto fail = [&](const std::string& what) {
        throw Error(ErrorKind::checkpoint, "{}: {}", where, what);
    };
    const auto named = [&](std::string_view field) {
        const auto it = names.find(field);
        return it == names.end() ? field : it->second;
    };
    const auto positive = [&](int64_t value, std::string_view field) {
        if (value <= 0 || value > (int64_t{1} << 40))
            fail(fmt::format("{} must be positive, is {}", named(field), value));
    };
    positive(vocab_size, "vocab_size");
    positive(dim, "dim");
    positive(n_layers, "n_layers");
    positive(n_heads, "n_heads");
    positive(kv_lora_rank, "kv_lora_rank");
    positive(qk_nope_head_dim, "qk_nope_head_dim");
    positive(qk_rope_head_dim, "qk_rope_head_dim");
    positive(v_head_dim, "v_head_dim");
    positive(max_positions, "max_positions");
    if (q_lora_rank < 0) fail("q_lora_rank must not be negative");
    if (qk_rope_head_dim % 2 != 0)
        fail(fmt::format("qk_rope_head_dim must be even, is {}", qk_rope_head_dim));
    if (index_topk < 0) fail("index_topk must not be negative");
    if (index_topk > 0) {
        positive(index_n_heads, "index_n_heads");
        positive(index_head_dim, "index_head_dim");
        positive(index_topk, "index_topk");
        positive(q_lora_rank, "q_lora_rank");  // the indexer's queries are made of it
        if (index_head_dim < qk_rope_head_dim)
            fail(fmt::format("index_head_dim {} is less than qk_rope_head_dim {}", index_head_dim,
                             qk_rope_head_dim));
        const std::string& pattern = index_topk_pattern;
        if (!pattern.empty() &&
            (static_cast<int64_t>(pattern.size()) != n_layers || pattern[0] != 'F' ||
             pattern.find_first_not_of("FS") != std::string::npos))
            fail(fmt::format("{} must be {} letters F (full) and S (shared), the first of them F",
                             named("index_topk_pattern"), n_layers));
    }
    if (n_dense_layers < 0 || n_dense_layers > n_layers)
        fail(fmt::format("{} must be in 0..{}, is {}", named("n_dense_layers"), n_layers,
                         n_dense_layers));
    if (n_dense_layers > 0) positive(inter_dim, "inter_dim");
    if (!(norm_eps > 0)) fail(fmt::format("{} must be positive", named("norm_eps")));
    if (!(rope_theta > 0)) fail("rope_theta must be positive");
    if (yarn && !(yarn->factor >= 1 && yarn->original_max_positions > 0))
        fail(fmt::format("YaRN needs factor >= 1 and {} > 0", named("original_max_positions")));
    if (yarn && !(yarn->beta_fast > 0 && yarn->beta_slow > 0))
        fail("YaRN needs beta_fast > 0 and beta_slow > 0");
    if (n_dense_layers == n_layers) return;
    positive(moe_inter_dim, "moe_inter_dim");
    positive(n_routed_experts, "n_routed_experts");
    positive(n_activated_experts, "n_activated_experts");
    positive(n_expert_groups, "n_expert_groups");
    positive(n_limited_groups, "n_limited_groups");
    if (n_shared_experts < 0) fail("n_shared_experts must not be negative");
    if (n_routed_experts % n_expert_groups != 0)
        fail(fmt::format("n_routed_experts {} is not a multiple of {} {}", n_routed_experts,
                         named("n_expert_groups"), n_expert_groups));
    if (n_limited_groups > n_expert_groups)
        fail(fmt::format("{} {} exceeds {} {}", named("n_limited_groups"), n_limited_groups,
                         named("n_expert_groups"), n_expert_groups));
    if (n_activated_experts > n_limited_groups * (n_routed_experts / n_expert_groups))
        fail(fmt::format("{} {} exceeds the experts of {} kept groups",
                         named("n_activated_experts"), n_activated_experts, n_limited_groups));
}

}  // namespace ferry
