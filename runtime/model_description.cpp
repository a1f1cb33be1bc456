#include "runtime/model_description.h"

#include "base/error.h"

namespace ferry {
namespace {

// Calls visit(name, field) for every field; `Description` may be const.
template <typename Description, typename Visit>
void visit_fields(Description& d, Visit&& visit) {
    auto& m = d.model;
    visit("vocab_size", m.vocab_size);
    visit("dim", m.dim);
    visit("inter_dim", m.inter_dim);
    visit("moe_inter_dim", m.moe_inter_dim);
    visit("n_layers", m.n_layers);
    visit("n_dense_layers", m.n_dense_layers);
    visit("max_positions", m.max_positions);
    visit("n_heads", m.n_heads);
    visit("q_lora_rank", m.q_lora_rank);
    visit("kv_lora_rank", m.kv_lora_rank);
    visit("qk_nope_head_dim", m.qk_nope_head_dim);
    visit("qk_rope_head_dim", m.qk_rope_head_dim);
    visit("v_head_dim", m.v_head_dim);
    visit("rope_theta", m.rope_theta);
    visit("rope_interleave", m.rope_interleave);
    visit("norm_eps", m.norm_eps);
    visit("n_routed_experts", m.n_routed_experts);
    visit("n_shared_experts", m.n_shared_experts);
    visit("n_activated_experts", m.n_activated_experts);
    visit("n_expert_groups", m.n_expert_groups);
    visit("n_limited_groups", m.n_limited_groups);
    visit("score_func", m.score_func);
    visit("has_gate_bias", m.has_gate_bias);
    visit("norm_topk_prob", m.norm_topk_prob);
    visit("routed_scaling_factor", m.routed_scaling_factor);
    visit("tie_word_embeddings", m.tie_word_embeddings);
    visit("num_mtp_layers", d.num_mtp_layers);
    visit("fp8_weights", d.fp8_weights);
    visit("ue8m0_scales", d.ue8m0_scales);
}
template <typename Yarn, typename Visit>
void visit_yarn_fields(Yarn& y, Visit&& visit) {
    visit("yarn_factor", y.factor);
    visit("yarn_original_max_positions", y.original_max_positions);
    visit("yarn_beta_fast", y.beta_fast);
    visit("yarn_beta_slow", y.beta_slow);
    visit("yarn_mscale", y.mscale);
    visit("yarn_mscale_all_dim", y.mscale_all_dim);
}

class Writer {
  public:
    void operator()(const char* name, int64_t value) { attributes[name] = value; }
    void operator()(const char* name, double value) { attributes[name] = value; }
    void operator()(const char* name, bool value) { attributes[name] = int64_t{value}; }
    void operator()(const char* name, ScoreFunc value) {
        attributes[name] = std::string(value == ScoreFunc::sigmoid ? "sigmoid" : "softmax");
    }
    Attributes attributes;
};

class Reader {
  public:
    Reader(const Attributes& attributes, const std::string& where)
        : attributes_(attributes), where_(where) {}

    void operator()(const char* name, int64_t& field) const {
        if (const Attribute* value = find(name)) field = integer(name, *value);
    }
    void operator()(const char* name, bool& field) const {
        if (const Attribute* value = find(name)) field = integer(name, *value) != 0;
    }
    void operator()(const char* name, double& field) const {
        const Attribute* value = find(name);
        if (value == nullptr) return;
        if (const auto* number = std::get_if<double>(value))
            field = *number;
        else
            field = static_cast<double>(integer(name, *value));
    }
    void operator()(const char* name, ScoreFunc& field) const {
        const Attribute* value = find(name);
        if (value == nullptr) return;
        if (*value == Attribute(std::string("sigmoid")))
            field = ScoreFunc::sigmoid;
        else if (*value == Attribute(std::string("softmax")))
            field = ScoreFunc::softmax;
        else
            fail(name, "is neither sigmoid nor softmax");
    }

  private:
    const Attribute* find(const char* name) const {
        const auto it = attributes_.find(name);
        return it == attributes_.end() ? nullptr : &it->second;
    }
    int64_t integer(const char* name, const Attribute& value) const {
        const auto* number = std::get_if<int64_t>(&value);
        if (number == nullptr) fail(name, "is not an integer");
        if (*number < 0 || *number > kMaxExtent) fail(name, "is not of a sensible size");
        return *number;
    }
    [[noreturn]] void fail(const char* name, const char* what) const {
        throw Error(ErrorKind::checkpoint, "{}: {} {}", where_, name, what);
    }

    const Attributes& attributes_;
    const std::string& where_;
};

}  // namespace

Attributes to_attributes(const ModelDescription& description) {
    Writer writer;
    visit_fields(description, writer);
    if (description.model.yarn) visit_yarn_fields(*description.model.yarn, writer);
    return std::move(writer.attributes);
}

ModelDescription to_model_description(const Attributes& attributes, const std::string& where) {
    ModelDescription description;
    const Reader reader(attributes, where);
    visit_fields(description, reader);
    if (attributes.contains("yarn_factor")) {
        description.model.yarn.emplace();
        visit_yarn_fields(*description.model.yarn, reader);
    }
    validate(description, where);
    return description;
}

void validate(const ModelDescription& description, const std::string& where) {
    const ModelConfig& model = description.model;
    if (model.n_layers > 1000 || model.n_routed_experts > 65536 || description.num_mtp_layers < 0 ||
        description.num_mtp_layers > 100)
        throw Error(ErrorKind::checkpoint,
                    "{}: {} layers, {} experts or {} prediction layers are too many", where,
                    model.n_layers, model.n_routed_experts, description.num_mtp_layers);
    model.validate(where);
}

std::string to_string(const Attribute& value) {
    return std::visit([](const auto& v) { return fmt::format("{}", v); }, value);
}

}  // namespace ferry
