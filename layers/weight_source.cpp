#include "layers/weight_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/check.h"

namespace ferry {
namespace {

class TensorList {
  public:
    explicit TensorList(const ModelConfig& config) : c_(config) {}

    std::vector<TensorSpec> build() {
        linear("embed", {c_.vocab_size, c_.dim}).is_linear = false;
        for (int64_t layer = 0; layer < c_.n_layers; ++layer) add_layer(layer);
        plain("norm", {c_.dim});
        if (!c_.tie_word_embeddings) linear("head", {c_.vocab_size, c_.dim});
        for (int64_t layer = c_.n_layers; layer < c_.num_blocks(); ++layer) {
            const std::string prefix = block_prefix(c_, layer);
            for (const char* name : {"enorm", "hnorm", "head_norm"}) plain(prefix + name, {c_.dim});
            linear(prefix + "eh_proj", {c_.dim, 2 * c_.dim});
            add_layer(layer);
        }
        return std::move(list_);
    }

  private:
    void add_layer(int64_t layer) {
        const std::string prefix = block_prefix(c_, layer);
        plain(prefix + "attn_norm", {c_.dim});
        plain(prefix + "ffn_norm", {c_.dim});
        add_attention(prefix + "attn/");
        if (c_.has_indexer(layer)) add_indexer(prefix + "attn/indexer/");
        // A module's block is of the last layer's kind.
        if (c_.is_moe_layer(std::min(layer, c_.n_layers - 1)))
            add_moe(prefix + "ffn/");
        else
            add_mlp(prefix + "ffn/", c_.inter_dim);
    }
    void add_attention(const std::string& prefix) {
        const int64_t q_out = c_.n_heads * c_.qk_head_dim();
        if (c_.q_lora_rank == 0) {
            linear(prefix + "wq", {q_out, c_.dim});
        } else {
            linear(prefix + "wq_a", {c_.q_lora_rank, c_.dim});
            plain(prefix + "q_norm", {c_.q_lora_rank});
            linear(prefix + "wq_b", {q_out, c_.q_lora_rank});
        }
        linear(prefix + "wkv_a", {c_.latent_dim(), c_.dim});
        plain(prefix + "kv_norm", {c_.kv_lora_rank});
        linear(prefix + "wkv_b",
               {c_.n_heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank});
        linear(prefix + "wo", {c_.dim, c_.n_heads * c_.v_head_dim});
    }
    void add_indexer(const std::string& prefix) {
        linear(prefix + "wq_b", {c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank});
        linear(prefix + "wk", {c_.index_head_dim, c_.dim});
        plain(prefix + "k_norm", {c_.index_head_dim});
        plain(prefix + "k_norm_bias", {c_.index_head_dim});
        plain(prefix + "weights", {c_.index_n_heads, c_.dim});
    }
    void add_mlp(const std::string& prefix, int64_t inter_dim) {
        linear(prefix + "w1", {inter_dim, c_.dim});
        linear(prefix + "w2", {c_.dim, inter_dim});
        linear(prefix + "w3", {inter_dim, c_.dim});
    }
    void add_moe(const std::string& prefix) {
        plain(prefix + "gate/weight", {c_.n_routed_experts, c_.dim});
        if (c_.has_gate_bias) plain(prefix + "gate/bias", {c_.n_routed_experts});
        if (c_.n_shared_experts > 0)
            add_mlp(prefix + "shared/", c_.n_shared_experts * c_.moe_inter_dim);
        const int64_t experts = c_.n_routed_experts;
        linear(prefix + "experts/w1", {experts, c_.moe_inter_dim, c_.dim}).is_expert = true;
        linear(prefix + "experts/w2", {experts, c_.dim, c_.moe_inter_dim}).is_expert = true;
        linear(prefix + "experts/w3", {experts, c_.moe_inter_dim, c_.dim}).is_expert = true;
    }

    TensorSpec& plain(std::string name, std::vector<int64_t> shape) {
        return list_.emplace_back(TensorSpec{.name = std::move(name), .shape = std::move(shape)});
    }
    TensorSpec& linear(std::string name, std::vector<int64_t> shape) {
        TensorSpec& spec = plain(std::move(name), std::move(shape));
        spec.is_linear = true;
        return spec;
    }

    const ModelConfig& c_;
    std::vector<TensorSpec> list_;
};

}  // namespace

std::vector<TensorSpec> model_tensors(const ModelConfig& config) {
    return TensorList(config).build();
}

std::string block_prefix(const ModelConfig& config, int64_t layer) {
    return layer < config.n_layers ? fmt::format("layers/{}/", layer)
                                   : fmt::format("mtp/{}/", layer - config.n_layers);
}

int64_t layer_of(const ModelConfig& config, const std::string& name) {
    const int64_t index = std::atoll(name.c_str() + name.find('/') + 1);
    return name.starts_with("mtp/") ? config.n_layers + index : index;
}

void WeightSource::add_mtp() {
    FERRY_CHECK(false, "weights that have no multi-token-prediction module");
}

bool can_be_int4(const TensorSpec& spec) {
    return spec.is_linear && spec.shape.back() % kInt4Group == 0;
}

std::optional<std::vector<int64_t>> stored_shape(const TensorSpec& spec, DType stored) {
    if (stored == DType::fp8_e4m3 && !spec.is_linear) return std::nullopt;
    if (stored == DType::int4x2 && !can_be_int4(spec)) return std::nullopt;
    std::vector<int64_t> shape = spec.shape;
    shape.back() = stored_columns(stored, shape.back());
    return shape;
}

TensorInfo scale_info(const TensorInfo& weight) {
    const std::optional<ScaleForm> form = scale_form(weight.dtype);
    FERRY_CHECK(form, "scales of {}", to_string(weight.dtype));
    TensorInfo scales{.dtype = form->dtype, .shape = weight.shape};
    int64_t &out = scales.shape.end()[-2], &in = scales.shape.end()[-1];
    out = (out + form->rows - 1) / form->rows;
    in = (num_values(weight.dtype, in) + form->columns - 1) / form->columns;
    return scales;
}

std::string describe_shape(std::span<const int64_t> shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace ferry
