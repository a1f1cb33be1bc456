#include "runtime/model_shape.h"

#include <fstream>

#include "runtime/input_file.h"
#include "runtime/yaml.h"

namespace ferry {
namespace {

enum class Weights { f32, bf16, fp8 };

constexpr DType to_dtype(Weights weights) {
    return weights == Weights::f32 ? DType::f32
                                   : (weights == Weights::bf16 ? DType::bf16 : DType::fp8_e4m3);
}

std::vector<Field> shape_fields(ModelShape& shape, Weights& weights, YarnConfig& yarn) {
    ModelConfig& c = shape.config;
    constexpr Changes kResults = Changes::results;
    const auto whole = [&](const char* name, int64_t& value) {
        return Field{name, &value, {0, 1e12}, kResults, ""};
    };
    const auto real = [&](const char* name, double& value) {
        return Field{name, &value, {}, kResults, ""};
    };
    const auto flag = [&](const char* name, bool& value) {
        return Field{name, &value, {}, kResults, ""};
    };
    return {{"name", &shape.name, {}, kResults, ""},
            {"weights", choice(weights, {"f32", "bf16", "fp8"}), {}, kResults, ""},
            whole("vocab_size", c.vocab_size),
            whole("dim", c.dim),
            whole("inter_dim", c.inter_dim),
            whole("moe_inter_dim", c.moe_inter_dim),
            whole("n_layers", c.n_layers),
            whole("n_dense_layers", c.n_dense_layers),
            whole("max_positions", c.max_positions),
            whole("n_heads", c.n_heads),
            whole("q_lora_rank", c.q_lora_rank),
            whole("kv_lora_rank", c.kv_lora_rank),
            whole("qk_nope_head_dim", c.qk_nope_head_dim),
            whole("qk_rope_head_dim", c.qk_rope_head_dim),
            whole("v_head_dim", c.v_head_dim),
            real("rope_theta", c.rope_theta),
            flag("rope_interleave", c.rope_interleave),
            real("yarn.factor", yarn.factor),
            whole("yarn.original_max_positions", yarn.original_max_positions),
            real("yarn.beta_fast", yarn.beta_fast),
            real("yarn.beta_slow", yarn.beta_slow),
            real("yarn.mscale", yarn.mscale),
            real("yarn.mscale_all_dim", yarn.mscale_all_dim),
            real("norm_eps", c.norm_eps),
            whole("n_routed_experts", c.n_routed_experts),
            whole("n_shared_experts", c.n_shared_experts),
            whole("n_activated_experts", c.n_activated_experts),
            whole("n_expert_groups", c.n_expert_groups),
            whole("n_limited_groups", c.n_limited_groups),
            {"score_func", choice(c.score_func, {"softmax", "sigmoid"}), {}, kResults, ""},
            flag("has_gate_bias", c.has_gate_bias),
            flag("norm_topk_prob", c.norm_topk_prob),
            real("routed_scaling_factor", c.routed_scaling_factor),
            flag("tie_word_embeddings", c.tie_word_embeddings)};
}

}  // namespace

ModelShape load_model_shape(const std::string& path) {
    return parse_model_shape(read_text_file(path, kMaxYamlBytes), path);
}

ModelShape parse_model_shape(std::string_view text, const std::string& name) {
    ModelShape shape;
    Weights weights = Weights::bf16;
    YarnConfig yarn;
    FieldOrigins origins;
    assign_all(shape_fields(shape, weights, yarn), parse_yaml(text, name, ErrorKind::checkpoint),
               name, ErrorKind::checkpoint, &origins);
    shape.weights = to_dtype(weights);
    const auto first_yarn = origins.lower_bound("yarn.");
    if (first_yarn != origins.end() && first_yarn->first.starts_with("yarn."))
        shape.config.yarn = yarn;
    shape.config.validate(name);
    return shape;
}

}  // namespace ferry
