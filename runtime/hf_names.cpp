#include "runtime/hf_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "base/check.h"

namespace ferry {
namespace {

struct NamePair {
    std::string_view ferry, hf;
};
constexpr std::array<NamePair, 3> kModelNames{{
    {"embed", "model.embed_tokens.weight"},
    {"norm", "model.norm.weight"},
    {"head", "lm_head.weight"},
}};
// After layers/N/ or mtp/N/, and model.layers.N. there.
constexpr std::array<NamePair, 29> kLayerNames{{
    {"attn_norm", "input_layernorm.weight"},
    {"ffn_norm", "post_attention_layernorm.weight"},
    {"attn/wq", "self_attn.q_proj.weight"},
    {"attn/wq_a", "self_attn.q_a_proj.weight"},
    {"attn/q_norm", "self_attn.q_a_layernorm.weight"},
    {"attn/wq_b", "self_attn.q_b_proj.weight"},
    {"attn/wkv_a", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn/kv_norm", "self_attn.kv_a_layernorm.weight"},
    {"attn/wkv_b", "self_attn.kv_b_proj.weight"},
    {"attn/wo", "self_attn.o_proj.weight"},
    {"attn/indexer/wq_b", "self_attn.indexer.wq_b.weight"},
    {"attn/indexer/wk", "self_attn.indexer.wk.weight"},
    {"attn/indexer/k_norm", "self_attn.indexer.k_norm.weight"},
    {"attn/indexer/k_norm_bias", "self_attn.indexer.k_norm.bias"},
    {"attn/indexer/weights", "self_attn.indexer.weights_proj.weight"},
    {"ffn/w1", "mlp.gate_proj.weight"},
    {"ffn/w2", "mlp.down_proj.weight"},
    {"ffn/w3", "mlp.up_proj.weight"},
    {"ffn/gate/weight", "mlp.gate.weight"},
    {"ffn/gate/bias", "mlp.gate.e_score_correction_bias"},
    {"ffn/shared/w1", "mlp.shared_experts.gate_proj.weight"},
    {"ffn/shared/w2", "mlp.shared_experts.down_proj.weight"},
    {"ffn/shared/w3", "mlp.shared_experts.up_proj.weight"},
    // multi-token prediction
    {"embed", "embed_tokens.weight"},
    {"enorm", "enorm.weight"},
    {"hnorm", "hnorm.weight"},
    {"eh_proj", "eh_proj.weight"},
    {"head_norm", "shared_head.norm.weight"},
    {"head", "shared_head.head.weight"},
}};
struct ExpertNames {
    std::string_view ferry, hf, fused;
    int fused_idx, fused_num;
};
constexpr std::array<ExpertNames, 3> kExpertNames{{
    {"ffn/experts/w1", "mlp.experts.{}.gate_proj.weight", "mlp.experts.gate_up_proj", 0, 2},
    {"ffn/experts/w2", "mlp.experts.{}.down_proj.weight", "mlp.experts.down_proj", 0, 1},
    {"ffn/experts/w3", "mlp.experts.{}.up_proj.weight", "mlp.experts.gate_up_proj", 1, 2},
}};

HfPlace layer_place(std::string_view rest, int64_t hf_layer) {
    const std::string prefix = fmt::format("model.layers.{}.", hf_layer);
    for (const ExpertNames& e : kExpertNames)
        if (rest == e.ferry)
            return {prefix + std::string(e.hf), prefix + std::string(e.fused), e.fused_idx,
                    e.fused_num};
    const auto it = std::ranges::find(kLayerNames, rest, &NamePair::ferry);
    FERRY_CHECK(it != kLayerNames.end(), "no Hugging Face name for {}", rest);
    return {prefix + std::string(it->hf), "", 0, 1};
}

}  // namespace

std::string HfPlace::of_expert(int64_t expert) const {
    return fmt::format(fmt::runtime(name), expert);
}

HfPlace hf_place(const std::string& name, int64_t n_layers) {
    const bool is_mtp = name.starts_with("mtp/");
    if (is_mtp || name.starts_with("layers/")) {
        const size_t begin = name.find('/') + 1;
        const size_t end = name.find('/', begin);
        int64_t layer = 0;
        std::from_chars(name.data() + begin, name.data() + end, layer);
        return layer_place(std::string_view(name).substr(end + 1),
                           is_mtp ? n_layers + layer : layer);
    }
    const auto it = std::ranges::find(kModelNames, name, &NamePair::ferry);
    FERRY_CHECK(it != kModelNames.end(), "no Hugging Face name for {}", name);
    return {std::string(it->hf), "", 0, 1};
}

HfPlace hf_scale_place(const HfPlace& weight) {
    HfPlace place = weight;
    place.name += "_scale_inv";
    if (!place.fused_name.empty()) place.fused_name += "_scale_inv";
    return place;
}

HfPackedPlaces hf_packed_places(const HfPlace& weight) {
    const auto place = [&](const char* end) { return HfPlace{weight.name + end, "", 0, 1}; };
    return {place("_packed"), place("_scale"), place("_shape"), place("_g_idx")};
}

bool is_shared_with_model(const TensorSpec& mtp_tensor) {
    return mtp_tensor.name.ends_with("/embed") || mtp_tensor.name.ends_with("/head");
}

std::vector<TensorSpec> mtp_tensors(const ModelConfig& config, int64_t idx) {
    const std::string prefix = fmt::format("mtp/{}/", idx);
    std::vector<TensorSpec> list{
        {.name = prefix + "embed", .shape = {config.vocab_size, config.dim}},
        {.name = prefix + "head", .shape = {config.vocab_size, config.dim}, .is_linear = true},
    };
    ModelConfig with_modules = config;
    with_modules.n_mtp_layers = idx + 1;
    for (TensorSpec& spec : model_tensors(with_modules))
        if (spec.name.starts_with(prefix)) list.push_back(std::move(spec));
    return list;
}

}  // namespace ferry
