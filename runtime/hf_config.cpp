#include "runtime/hf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <span>

#include "base/error.h"
#include "layers/stored_weights.h"
#include "runtime/json_text.h"
#include "runtime/spelling.h"

namespace ferry {
namespace {

constexpr const char* kModelTypes[] = {"deepseek_v2", "deepseek_v3",   "deepseek_v32",
                                       "kimi_k2",     "glm4_moe_lite", "glm_moe_dsa"};
// Models of text and images whose text_config is one of those.
constexpr const char* kImageModelTypes[] = {"kimi_k25", "kimi_vl"};

const FieldNames kHfNames = {
    {"dim", "hidden_size"},
    {"inter_dim", "intermediate_size"},
    {"moe_inter_dim", "moe_intermediate_size"},
    {"n_layers", "num_hidden_layers"},
    {"n_dense_layers", "first_k_dense_replace"},
    {"n_heads", "num_attention_heads"},
    {"max_positions", "max_position_embeddings"},
    {"original_max_positions", "original_max_position_embeddings"},
    {"norm_eps", "rms_norm_eps"},
    {"n_activated_experts", "num_experts_per_tok"},
    {"n_expert_groups", "n_group"},
    {"n_limited_groups", "topk_group"},
};

// Fields of one JSON object; a null field counts as absent. Knows which were asked for.
class Fields {
  public:
    Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
        if (!object.is_object()) throw Error(ErrorKind::checkpoint, "{}: is not an object", where_);
    }

    // Null when it is absent.
    const Json* find(const char* key) const {
        asked_.insert(key);
        const auto it = object_.find(key);
        return it == object_.end() || it->is_null() ? nullptr : &*it;
    }
    bool has(const char* key) const { return find(key) != nullptr; }
    int64_t integer(const char* key) const { return as_integer(key, need(key)); }
    int64_t integer(const char* key, int64_t fallback) const {
        const Json* value = find(key);
        return value == nullptr ? fallback : as_integer(key, *value);
    }
    double number(const char* key) const { return as_number(key, need(key)); }
    double number(const char* key, double fallback) const {
        const Json* value = find(key);
        return value == nullptr ? fallback : as_number(key, *value);
    }
    bool boolean(const char* key, bool fallback) const {
        const Json* value = find(key);
        if (value == nullptr) return fallback;
        if (!value->is_boolean()) fail(key, "is not true or false");
        return value->get<bool>();
    }
    std::string text(const char* key, const std::string& fallback) const {
        const Json* value = find(key);
        if (value == nullptr) return fallback;
        if (!value->is_string()) fail(key, "is not a string");
        return value->get<std::string>();
    }
    Fields object(const char* key) const { return {need(key), where_ + ": " + key}; }
    std::vector<std::string> keys() const {
        std::vector<std::string> keys;
        for (const auto& [key, value] : object_.items()) keys.push_back(key);
        return keys;
    }
    const Json& need(const char* key) const {
        const Json* value = find(key);
        if (value == nullptr) fail(key, "is missing");
        return *value;
    }
    // Refuses a field whose value is not the one that Ferry computes.
    template <typename T>
    void only(const char* key, const T& supported) const {
        const Json* value = find(key);
        if (value != nullptr && *value != Json(supported))
            fail(key, fmt::format("{} is not supported, only {}", in_quotes(value->dump()),
                                  Json(supported).dump()));
    }
    [[noreturn]] void fail(const char* key, const std::string& what) const {
        throw Error(ErrorKind::checkpoint, "{}: {} {}", where_, key, what);
    }
    // A line for every key that nobody asked for and that is near one that is not in the file.
    void note_misspellings(std::vector<std::string>& notes) const {
        std::vector<std::string> absent;
        std::ranges::copy_if(asked_, std::back_inserter(absent),
                             [&](const std::string& key) { return !object_.contains(key); });
        for (const auto& [key, value] : object_.items()) {
            if (asked_.contains(key)) continue;
            const std::string nearest = nearest_spelling(key, absent);
            if (!nearest.empty())
                notes.push_back(fmt::format("{}: {}: no such key; did you mean {}?", where_,
                                            in_quotes(key), nearest));
        }
    }

  private:
    int64_t as_integer(const char* key, const Json& value) const {
        if (!value.is_number_integer() ||
            (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{kMaxExtent}))
            fail(key, "is not an integer of a sensible size");
        return value.get<int64_t>();
    }

    double as_number(const char* key, const Json& value) const {
        if (!value.is_number()) fail(key, "is not a number");
        return value.get<double>();
    }

    const Json& object_;
    std::string where_;
    mutable std::set<std::string> asked_;
};

bool is_one_of(std::span<const char* const> types, const std::string& type) {
    return std::ranges::find(types, type) != types.end();
}

// What describes the text model.
Fields text_fields(const Fields& file) {
    const std::string supported =
        fmt::format("{}, {}", fmt::join(kModelTypes, ", "), fmt::join(kImageModelTypes, ", "));
    if (!file.has("model_type")) file.fail("model_type", "is missing; supported are " + supported);
    const std::string type = file.text("model_type", "");
    if (is_one_of(kModelTypes, type)) return file;
    if (!is_one_of(kImageModelTypes, type))
        file.fail("model_type", in_quotes(type) + " is not supported, only " + supported);
    const Fields f = file.object("text_config");
    if (const std::string part = f.text("model_type", kModelTypes[1]);
        !is_one_of(kModelTypes, part))
        f.fail("model_type", fmt::format("{} is not supported, only {}", in_quotes(part),
                                         fmt::join(kModelTypes, ", ")));
    return f;
}

// What Transformers' class for a model fills in where its file leaves it out.
struct Defaults {
    double norm_eps = ModelConfig().norm_eps;
    int64_t n_dense_layers = -1;  // none: must be there
    double routed_scaling_factor = 1;
    bool norm_topk_prob = false;
    const char* scoring_func = "softmax";
    const char* topk_method = "greedy";
    int64_t n_group = 1, topk_group = 1;
    int64_t index_topk = 0, index_n_heads = 64;
    bool index_rope_interleave = false;
};
Defaults defaults_of(const Fields& f) {
    const std::string type = f.text("model_type", kModelTypes[1]);
    Defaults defaults;
    if (type == "deepseek_v2") return defaults;
    defaults.norm_topk_prob = true;
    defaults.scoring_func = "sigmoid";
    defaults.topk_method = "noaux_tc";
    if (type == "glm4_moe_lite") {
        defaults.norm_eps = 1e-5;
        defaults.n_dense_layers = 1;
        defaults.routed_scaling_factor = 1.8;
    } else {  // V3, R1 and Kimi K2
        defaults.routed_scaling_factor = 2.5;
        defaults.n_group = 8;
        defaults.topk_group = 4;
    }
    if (type == "deepseek_v32" || type == "glm_moe_dsa") {
        defaults.n_dense_layers = 3;
        defaults.index_topk = 2048;
    }
    if (type == "glm_moe_dsa") {
        defaults.norm_eps = 1e-5;
        defaults.n_group = 1;
        defaults.topk_group = 1;
        defaults.index_n_heads = 32;
        defaults.index_rope_interleave = true;
    }
    return defaults;
}

void read_rope_scaling(const Fields& scaling, ModelConfig& c) {
    const std::string type = scaling.text("rope_type", scaling.text("type", "default"));
    c.rope_theta = scaling.number("rope_theta", c.rope_theta);
    scaling.only("partial_rotary_factor", 1.0);
    if (type == "default") return;
    if (type != "yarn") scaling.fail("type", in_quotes(type) + " is not supported, only yarn");
    if (scaling.has("attention_factor"))
        scaling.fail("attention_factor", "is not supported, only mscale and mscale_all_dim");
    scaling.only("truncate", true);
    YarnConfig yarn;
    yarn.factor = scaling.number("factor");
    yarn.original_max_positions =
        scaling.integer("original_max_position_embeddings", c.max_positions);
    yarn.beta_fast = scaling.number("beta_fast", yarn.beta_fast);
    yarn.beta_slow = scaling.number("beta_slow", yarn.beta_slow);
    yarn.mscale = scaling.number("mscale", yarn.mscale);
    yarn.mscale_all_dim = scaling.number("mscale_all_dim", yarn.mscale_all_dim);
    c.yarn = yarn;
}

void read_attention(const Fields& f, ModelConfig& c, std::vector<std::string>& notes) {
    f.only("attention_bias", false);
    c.n_heads = f.integer("num_attention_heads");
    c.q_lora_rank = f.integer("q_lora_rank", 0);
    c.kv_lora_rank = f.integer("kv_lora_rank");
    c.qk_nope_head_dim = f.integer("qk_nope_head_dim");
    c.qk_rope_head_dim = f.integer("qk_rope_head_dim");
    c.v_head_dim = f.integer("v_head_dim");
    c.rope_theta = f.number("rope_theta", c.rope_theta);
    f.only("partial_rotary_factor", 1.0);
    c.rope_interleave = f.boolean("rope_interleave", true);
    for (const char* key : {"rope_scaling", "rope_parameters"}) {  // of two, Transformers' choice
        if (!f.has(key) || f.need(key).empty()) continue;
        const Fields scaling = f.object(key);
        read_rope_scaling(scaling, c);
        scaling.note_misspellings(notes);
        break;
    }
}

// ModelConfig::index_topk_pattern, in any of the three ways in which GLM-5.2 may say it; empty
// where all layers are alike.
std::string index_pattern(const Fields& f, int64_t n_layers) {
    std::string pattern;
    const Json* types = f.find("indexer_types");
    const char* const key = types != nullptr ? "indexer_types" : "index_topk_pattern";
    if (types == nullptr) types = f.find("index_topk_pattern");
    if (types != nullptr && types->is_string()) {
        pattern = types->get<std::string>();
    } else if (types != nullptr) {
        for (const Json& type : *types)
            pattern += type == "full" ? 'F' : type == "shared" ? 'S' : '?';
    } else {
        const int64_t period = std::max<int64_t>(1, f.integer("index_topk_freq", 1));
        const int64_t offset = f.integer("index_skip_topk_offset", 2);
        if (period == 1) return pattern;
        for (int64_t layer = 0; layer < std::min<int64_t>(n_layers, kMostLayers); ++layer)
            pattern += std::max<int64_t>(0, layer - offset + 1) % period == 0 ? 'F' : 'S';
    }
    pattern.resize(std::min(pattern.size(), static_cast<size_t>(n_layers)));  // without modules
    if (static_cast<int64_t>(pattern.size()) != n_layers || !pattern.starts_with('F') ||
        pattern.find_first_not_of("FS") != std::string::npos)
        f.fail(key, fmt::format("is not \"full\" or \"shared\" (\"F\" or \"S\") for each of {} "
                                "layers, the first one full",
                                n_layers));
    return pattern.find('S') == std::string::npos ? "" : pattern;
}

// Which tokens are attended to, of models that choose: DeepSeek-V3.2, GLM-5.
void read_indexer(const Fields& f, const Defaults& defaults, ModelConfig& c) {
    c.index_topk = f.integer("index_topk", defaults.index_topk);
    if (c.index_topk == 0) return;
    c.index_n_heads = f.integer("index_n_heads", defaults.index_n_heads);
    c.index_head_dim = f.integer("index_head_dim", 128);
    c.index_rope_interleave = f.boolean("indexer_rope_interleave", defaults.index_rope_interleave);
    c.index_topk_pattern = index_pattern(f, c.n_layers);
}

// GLM-4.7-Flash may name the kind of every layer instead of counting those that are dense.
int64_t read_dense_layers(const Fields& f, const Defaults& defaults, int64_t n_layers) {
    const Json* types = f.find("mlp_layer_types");
    if (types == nullptr)
        return defaults.n_dense_layers < 0
                   ? f.integer("first_k_dense_replace")
                   : f.integer("first_k_dense_replace", defaults.n_dense_layers);
    const auto is = [](const char* kind) {
        return [kind](const Json& type) { return type == kind; };
    };
    const auto sparse = std::find_if_not(types->begin(), types->end(), is("dense"));
    if (!types->is_array() || static_cast<int64_t>(types->size()) != n_layers ||
        !std::all_of(sparse, types->end(), is("sparse")))
        f.fail("mlp_layer_types", fmt::format("is not \"dense\" for the first and \"sparse\" for "
                                              "the rest of {} layers",
                                              n_layers));
    return sparse - types->begin();
}

void read_moe(const Fields& f, const Defaults& defaults, ModelConfig& c) {
    if (!f.has("n_routed_experts")) {
        c.n_dense_layers = c.n_layers;
        return;
    }
    f.only("moe_layer_freq", 1);
    c.n_dense_layers = read_dense_layers(f, defaults, c.n_layers);
    c.n_routed_experts = f.integer("n_routed_experts");
    c.n_shared_experts = f.integer("n_shared_experts", 0);
    c.n_activated_experts = f.integer("num_experts_per_tok");
    c.moe_inter_dim = f.integer("moe_intermediate_size");
    c.norm_topk_prob = f.boolean("norm_topk_prob", defaults.norm_topk_prob);
    c.routed_scaling_factor = f.number("routed_scaling_factor", defaults.routed_scaling_factor);

    const std::string score = f.text("scoring_func", defaults.scoring_func);
    if (score != "sigmoid" && score != "softmax")
        f.fail("scoring_func", in_quotes(score) + " is not supported, only sigmoid and softmax");
    c.score_func = score == "sigmoid" ? ScoreFunc::sigmoid : ScoreFunc::softmax;

    const std::string method = f.text("topk_method", defaults.topk_method);
    if (method != "noaux_tc" && method != "group_limited_greedy" && method != "greedy")
        f.fail("topk_method", in_quotes(method) +
                                  " is not supported, only greedy, group_limited_greedy, noaux_tc");
    c.has_gate_bias = method == "noaux_tc";
    if (method != "greedy") {  // greedy chooses among all experts, whatever the groups say
        c.n_expert_groups = f.integer("n_group", defaults.n_group);
        c.n_limited_groups = f.integer("topk_group", defaults.topk_group);
    }
}

// What compressed-tensors calls "pack-quantized", as Kimi-K2-Thinking has its routed experts in
// groups of 32. A larger group is as many of those with one scale.
void read_packed_int4(const Fields& q) {
    q.only("format", "pack-quantized");
    if (q.has("kv_cache_scheme")) q.fail("kv_cache_scheme", "is not supported");
    const Fields groups = q.object("config_groups");
    for (const std::string& name : groups.keys()) {
        const Fields group = groups.object(name.c_str());
        group.only("format", "pack-quantized");
        for (const char* key : {"input_activations", "output_activations"})
            if (group.has(key)) group.fail(key, "are not supported; only weights are quantised");
        const Fields weights = group.object("weights");
        weights.only("num_bits", 4);
        weights.only("type", "int");
        weights.only("symmetric", true);
        weights.only("dynamic", false);
        const std::string strategy = weights.text("strategy", "group");
        if (strategy != "group" && strategy != "channel")
            weights.fail("strategy",
                         in_quotes(strategy) + " is not supported, only group and channel");
        if (const int64_t size = weights.integer("group_size", kInt4Group);
            strategy == "group" && (size < kInt4Group || size % kInt4Group != 0))
            weights.fail("group_size", fmt::format("{} is not supported, only multiples of {}",
                                                   size, kInt4Group));
        // These leave the columns in their order.
        if (const Json* order = weights.find("actorder");
            order != nullptr && *order != false && *order != "weight" && *order != "static")
            weights.fail("actorder", order->dump() + " is not supported, only weight and static");
    }
}

// In the part of the text model or beside it.
void read_quantization(const Fields& text, const Fields& file, ModelDescription& config,
                       std::vector<std::string>& notes) {
    const Fields& f = text.has("quantization_config") ? text : file;
    if (!f.has("quantization_config")) return;
    const Fields q = f.object("quantization_config");
    const std::string method = q.text("quant_method", "fp8");
    if (method == "compressed-tensors") {
        read_packed_int4(q);
        config.int4_experts = true;
        return;
    }
    if (method != "fp8")
        q.fail("quant_method",
               in_quotes(method) + " is not supported, only fp8 and compressed-tensors");
    q.only("fmt", "e4m3");
    q.only("weight_block_size", std::vector<int>{128, 128});
    q.only("activation_scheme", "dynamic");
    const std::string scales = q.text("scale_fmt", "float");
    if (scales != "float" && scales != "ue8m0")
        q.fail("scale_fmt", in_quotes(scales) + " is not supported, only ue8m0");
    config.fp8_weights = true;
    config.ue8m0_scales = scales == "ue8m0";
    q.note_misspellings(notes);
}

}  // namespace

ModelDescription parse_hf_config(std::string_view json_text, const std::string& where,
                                 std::vector<std::string>* warnings) {
    const Json root = parse_json(json_text, where);
    const Fields file(root, where);
    const Fields f = text_fields(file);
    ModelDescription config;
    ModelConfig& c = config.model;
    std::vector<std::string> notes;
    f.only("hidden_act", "silu");
    f.only("mlp_bias", false);
    c.vocab_size = f.integer("vocab_size");
    c.dim = f.integer("hidden_size");
    c.inter_dim = f.integer("intermediate_size", 0);
    c.n_layers = f.integer("num_hidden_layers");
    c.max_positions = f.integer("max_position_embeddings", c.max_positions);
    const Defaults defaults = defaults_of(f);
    c.norm_eps = f.number("rms_norm_eps", defaults.norm_eps);
    c.tie_word_embeddings = f.boolean("tie_word_embeddings", false);
    read_attention(f, c, notes);
    read_indexer(f, defaults, c);
    read_moe(f, defaults, c);
    config.num_mtp_layers = f.integer("num_nextn_predict_layers", 0);
    read_quantization(f, file, config, notes);
    validate(config, where, kHfNames);
    f.note_misspellings(notes);
    if (warnings != nullptr) *warnings = std::move(notes);
    return config;
}

}  // namespace ferry
