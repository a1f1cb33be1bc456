#include "runtime/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using Json = nlohmann::json;

// The published config.json of DeepSeek-V3, fields that matter.
Json deepseek_v3() {
    return Json::parse(R"({"model_type": "deepseek_v3", "hidden_act": "silu", "vocab_size": 129280,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "norm_topk_prob": true, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "max_position_embeddings": 163840,
        "attention_bias": false, "tie_word_embeddings": false,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                         "type": "yarn"},
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
                                "quant_method": "fp8", "weight_block_size": [128, 128]}})");
}

ModelDescription parse(const Json& json) {
    return parse_hf_config(json.dump(), "config.json");
}
Json with(const char* key, Json value) {
    Json json = deepseek_v3();
    json[key] = std::move(value);
    return json;
}
Json without(const char* key) {
    Json json = deepseek_v3();
    json.erase(key);
    return json;
}

TEST(HfConfig, DeepSeekV3) {
    const ModelDescription config = parse(deepseek_v3());
    const ModelConfig& c = config.model;
    EXPECT_EQ(c.vocab_size, 129280);
    EXPECT_EQ(c.dim, 7168);
    EXPECT_EQ(c.inter_dim, 18432);
    EXPECT_EQ(c.moe_inter_dim, 2048);
    EXPECT_EQ(c.n_layers, 61);
    EXPECT_EQ(c.n_dense_layers, 3);
    EXPECT_EQ(c.n_heads, 128);
    EXPECT_EQ(c.q_lora_rank, 1536);
    EXPECT_EQ(c.kv_lora_rank, 512);
    EXPECT_EQ(c.qk_nope_head_dim, 128);
    EXPECT_EQ(c.qk_rope_head_dim, 64);
    EXPECT_EQ(c.v_head_dim, 128);
    EXPECT_EQ(c.n_routed_experts, 256);
    EXPECT_EQ(c.n_shared_experts, 1);
    EXPECT_EQ(c.n_activated_experts, 8);
    EXPECT_EQ(c.n_expert_groups, 8);
    EXPECT_EQ(c.n_limited_groups, 4);
    EXPECT_EQ(c.score_func, ScoreFunc::sigmoid);
    EXPECT_TRUE(c.has_gate_bias);
    EXPECT_TRUE(c.norm_topk_prob);
    EXPECT_EQ(c.routed_scaling_factor, 2.5);
    EXPECT_EQ(c.norm_eps, 1e-6);
    EXPECT_EQ(c.rope_theta, 10000);
    EXPECT_TRUE(c.rope_interleave);
    EXPECT_EQ(c.max_positions, 163840);
    EXPECT_FALSE(c.tie_word_embeddings);
    ASSERT_TRUE(c.yarn);
    EXPECT_EQ(c.yarn->factor, 40);
    EXPECT_EQ(c.yarn->original_max_positions, 4096);
    EXPECT_EQ(c.yarn->beta_fast, 32);
    EXPECT_EQ(c.yarn->beta_slow, 1);
    EXPECT_EQ(c.yarn->mscale, 1);
    EXPECT_EQ(c.yarn->mscale_all_dim, 1);
    EXPECT_EQ(config.num_mtp_layers, 1);
    EXPECT_TRUE(config.fp8_weights);
    EXPECT_FALSE(config.ue8m0_scales);
    EXPECT_EQ(c.num_parameters(), 671026419200);
}

TEST(HfConfig, WhatTransformersFillsIn) {
    Json v3 = deepseek_v3();
    for (const char* key : {"scoring_func", "topk_method", "norm_topk_prob"}) v3.erase(key);
    EXPECT_EQ(parse(v3).model.score_func, ScoreFunc::sigmoid);
    EXPECT_TRUE(parse(v3).model.has_gate_bias);
    EXPECT_TRUE(parse(v3).model.norm_topk_prob);
    v3["model_type"] = "kimi_k2";
    EXPECT_EQ(parse(v3).model.score_func, ScoreFunc::sigmoid);
    v3["model_type"] = "deepseek_v2";
    EXPECT_EQ(parse(v3).model.score_func, ScoreFunc::softmax);
    EXPECT_FALSE(parse(v3).model.has_gate_bias);
    EXPECT_FALSE(parse(v3).model.norm_topk_prob);
    EXPECT_EQ(parse(v3).model.n_expert_groups, 1);  // greedy knows no groups
    v3["topk_method"] = "group_limited_greedy";
    EXPECT_EQ(parse(v3).model.n_expert_groups, 8);

    Json few = deepseek_v3();
    for (const char* key : {"n_group", "topk_group", "routed_scaling_factor"}) few.erase(key);
    const auto values = [&few] {
        const ModelConfig c = parse(few).model;
        return std::tuple(c.n_expert_groups, c.n_limited_groups, c.routed_scaling_factor);
    };
    EXPECT_EQ(values(), std::tuple(8, 4, 2.5));
    few["model_type"] = "deepseek_v2";
    few["topk_method"] = "group_limited_greedy";
    EXPECT_EQ(values(), std::tuple(1, 1, 1.0));
}

TEST(HfConfig, Glm47Flash) {
    Json glm = with("model_type", "glm4_moe_lite");
    glm["mlp_layer_types"] = std::vector<std::string>(61, "sparse");
    glm["mlp_layer_types"][0] = "dense";
    EXPECT_EQ(parse(glm).model.n_dense_layers, 1);  // not first_k_dense_replace, which is 3
    const auto refused = [&](const Json& types) {
        Json other = glm;
        other["mlp_layer_types"] = types;
        EXPECT_ERROR(parse(other), ErrorKind::checkpoint, "config.json: mlp_layer_types is not");
    };
    refused("dense");
    refused({"dense", "sparse"});
    refused({{"sparse", 61}});
    Json late = glm["mlp_layer_types"];
    late[7] = "dense";
    refused(late);
    Json partial = glm;
    partial["partial_rotary_factor"] = 0.5;
    EXPECT_ERROR(parse(partial), ErrorKind::checkpoint, "partial_rotary_factor");

    // What its class fills in.
    for (const char* key :
         {"mlp_layer_types", "first_k_dense_replace", "n_group", "topk_group",
          "routed_scaling_factor", "scoring_func", "topk_method", "norm_topk_prob", "rms_norm_eps"})
        glm.erase(key);
    const ModelConfig c = parse(glm).model;
    EXPECT_EQ(c.n_dense_layers, 1);
    EXPECT_EQ(std::tuple(c.n_expert_groups, c.n_limited_groups), std::tuple(1, 1));
    EXPECT_EQ(std::tuple(c.routed_scaling_factor, c.norm_eps), std::tuple(1.8, 1e-5));
    EXPECT_EQ(c.score_func, ScoreFunc::sigmoid);
    EXPECT_TRUE(c.has_gate_bias && c.norm_topk_prob);
}

TEST(HfConfig, OptionalParts) {
    EXPECT_EQ(parse(with("q_lora_rank", nullptr)).model.q_lora_rank, 0);
    EXPECT_FALSE(parse(with("rope_scaling", nullptr)).model.yarn);
    EXPECT_FALSE(parse(with("rope_interleave", false)).model.rope_interleave);
    EXPECT_TRUE(parse(with("tie_word_embeddings", true)).model.tie_word_embeddings);
    EXPECT_FALSE(parse(without("quantization_config")).fp8_weights);
    EXPECT_EQ(parse(without("num_nextn_predict_layers")).num_mtp_layers, 0);
    const ModelConfig dense = parse(without("n_routed_experts")).model;
    EXPECT_EQ(dense.n_dense_layers, dense.n_layers);
    Json v31 = deepseek_v3();
    v31["quantization_config"]["scale_fmt"] = "ue8m0";
    EXPECT_TRUE(parse(v31).ue8m0_scales);
}

TEST(HfConfig, RopeInItsNewerForms) {
    Json json = deepseek_v3();
    json["rope_scaling"].erase("type");
    json["rope_scaling"]["rope_type"] = "yarn";
    EXPECT_EQ(parse(json).model.yarn->factor, 40);

    json.erase("rope_scaling");
    json.erase("rope_theta");
    json["rope_parameters"] = {{"rope_type", "yarn"},
                               {"rope_theta", 50000},
                               {"factor", 32},
                               {"original_max_position_embeddings", 4096}};
    EXPECT_EQ(parse(json).model.rope_theta, 50000);
    EXPECT_EQ(parse(json).model.yarn->factor, 32);
    EXPECT_EQ(parse(json).model.yarn->mscale_all_dim, 0);
    json["rope_parameters"]["rope_type"] = "default";
    EXPECT_FALSE(parse(json).model.yarn);
    EXPECT_EQ(parse(json).model.rope_theta, 50000);

    // YaRN that a user has added to a newer file.
    json["rope_scaling"] = deepseek_v3()["rope_scaling"];
    EXPECT_EQ(parse(json).model.yarn->factor, 40);
    EXPECT_EQ(parse(json).model.rope_theta, 10000);  // that of rope_parameters goes with it
    json["rope_scaling"] = Json::object();
    EXPECT_FALSE(parse(json).model.yarn);
    EXPECT_EQ(parse(json).model.rope_theta, 50000);
}

TEST(HfConfig, RefusesWhatFerryDoesNotCompute) {
    const auto refused = [](const Json& json, const std::string& part) {
        EXPECT_ERROR(parse(json), ErrorKind::checkpoint, "config.json", part);
    };
    refused(with("hidden_act", "gelu"), "hidden_act");
    refused(with("attention_bias", true), "attention_bias");
    refused(with("mlp_bias", true), "mlp_bias");
    refused(with("moe_layer_freq", 2), "moe_layer_freq");
    refused(with("scoring_func", "tanh"), "scoring_func \"tanh\" is not supported");
    refused(with("topk_method", "best"), "topk_method");
    refused(with("rope_scaling", {{"type", "linear"}, {"factor", 2}}), "\"linear\"");
    refused(with("quantization_config", {{"quant_method", "awq"}}), "quant_method");
    Json int4 = {{"quant_method", "compressed-tensors"},
                 {"format", "pack-quantized"},
                 {"config_groups",
                  {{"group_0",
                    {{"input_activations", nullptr},
                     {"weights",
                      {{"num_bits", 4},
                       {"type", "int"},
                       {"symmetric", true},
                       {"strategy", "group"},
                       {"group_size", 32}}}}}}}};
    EXPECT_TRUE(parse(with("quantization_config", int4)).int4_experts);
    EXPECT_FALSE(parse(with("quantization_config", int4)).fp8_weights);
    const auto with_int4 = [&](const char* key, const Json& value) {
        Json other = int4;
        other["config_groups"]["group_0"]["weights"][key] = value;
        return with("quantization_config", other);
    };
    const auto refused_int4 = [&](const char* key, const Json& value) {
        refused(with_int4(key, value), key);
    };
    refused_int4("num_bits", 8);
    refused_int4("group_size", 48);
    refused_int4("group_size", 0);
    refused_int4("symmetric", false);
    refused_int4("strategy", "tensor");
    refused_int4("actorder", "group");
    refused_int4("actorder", "dynamic");
    refused_int4("actorder", true);
    for (const auto& [key, value] : std::vector<std::pair<const char*, Json>>{
             {"group_size", 128}, {"strategy", "channel"}, {"actorder", "weight"}})
        EXPECT_TRUE(parse(with_int4(key, value)).int4_experts) << key;
    int4["config_groups"]["group_0"]["input_activations"] = {{"num_bits", 8}};
    refused(with("quantization_config", int4), "input_activations");
    refused(with("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}),
            "weight_block_size");
}

TEST(HfConfig, RefusesOtherModelTypes) {
    const std::string supported =
        "deepseek_v2, deepseek_v3, deepseek_v32, kimi_k2, glm4_moe_lite, glm_moe_dsa, kimi_k25, "
        "kimi_vl";
    for (const char* type : {"llama", "deepseek_v4", "deepseek", ""})
        EXPECT_ERROR(parse(with("model_type", type)), ErrorKind::checkpoint,
                     "config.json: model_type \"" + std::string(type) + "\" is not supported",
                     supported);
    EXPECT_ERROR(parse(without("model_type")), ErrorKind::checkpoint,
                 "config.json: model_type is missing", supported);
    // A model of another kind may lack everything else: its type comes first.
    EXPECT_ERROR(parse({{"model_type", "llama"}, {"hidden_act", "gelu"}}), ErrorKind::checkpoint,
                 "model_type");
}

TEST(HfConfig, ModelsThatChooseTheirKeys) {
    EXPECT_EQ(parse(deepseek_v3()).model.index_topk, 0);
    const ModelConfig v32 = parse(with("model_type", "deepseek_v32")).model;
    EXPECT_EQ(v32.index_topk, 2048);
    EXPECT_EQ(v32.index_n_heads, 64);
    EXPECT_EQ(v32.index_head_dim, 128);
    EXPECT_FALSE(v32.index_rope_interleave);
    EXPECT_EQ(v32.n_expert_groups, 8);
    Json glm = with("model_type", "glm_moe_dsa");
    for (const char* key : {"n_group", "topk_group", "rms_norm_eps"}) glm.erase(key);
    const ModelConfig glm5 = parse(glm).model;
    EXPECT_EQ(glm5.index_n_heads, 32);
    EXPECT_TRUE(glm5.index_rope_interleave);
    EXPECT_EQ(glm5.n_expert_groups, 1);
    EXPECT_EQ(glm5.norm_eps, 1e-5);
    // Under another name.
    EXPECT_EQ(parse(with("index_topk", 512)).model.index_topk, 512);

    glm["indexer_rope_interleave"] = false;
    glm["indexer_types"] = std::vector<std::string>(61, "full");
    glm["index_topk_freq"] = 1;
    EXPECT_FALSE(parse(glm).model.index_rope_interleave);
    EXPECT_EQ(parse(glm).model.index_topk_pattern, "");
    Json narrow = with("model_type", "deepseek_v32");
    narrow["index_head_dim"] = 32;
    EXPECT_ERROR(parse(narrow), ErrorKind::checkpoint, "index_head_dim 32", "qk_rope_head_dim 64");
}

// GLM-5.2: some take the keys that an earlier one chose.
TEST(HfConfig, LayersThatShareAChoice) {
    Json glm = with("model_type", "glm_moe_dsa");
    glm["num_hidden_layers"] = 7;
    const auto pattern = [&](const std::vector<std::pair<const char*, Json>>& fields) {
        Json file = glm;
        for (const auto& [key, value] : fields) file[key] = value;
        return parse(file).model.index_topk_pattern;
    };
    EXPECT_EQ(pattern({{"index_topk_freq", 1}}), "");
    EXPECT_EQ(pattern({{"index_topk_freq", 4}}), "FFSSSFS");
    EXPECT_EQ(pattern({{"index_topk_freq", 4}, {"index_skip_topk_offset", 3}}), "FFFSSSF");
    EXPECT_EQ(pattern({{"index_topk_pattern", "FSSFSSF"}, {"index_topk_freq", 4}}), "FSSFSSF");
    EXPECT_EQ(pattern({{"index_topk_pattern", "FSSFSSFF"}}), "FSSFSSF");  // and a module's
    const Json types = {"full", "shared", "full", "full", "shared", "shared", "full"};
    EXPECT_EQ(pattern({{"indexer_types", types}, {"index_topk_pattern", "FFFFFFF"}}), "FSFFSSF");

    const Json first_shared = {"shared", "full", "full", "full", "full", "full", "full"};
    EXPECT_ERROR(pattern({{"indexer_types", first_shared}}), ErrorKind::checkpoint, "indexer_types",
                 "the first one full");
    EXPECT_ERROR(pattern({{"indexer_types", Json::parse(R"(["full", "shared"])")}}),
                 ErrorKind::checkpoint, "indexer_types", "each of 7 layers");
    EXPECT_ERROR(pattern({{"index_topk_pattern", "FSXFSSF"}}), ErrorKind::checkpoint,
                 "index_topk_pattern");
    EXPECT_ERROR(pattern({{"index_topk_pattern", 5}}), ErrorKind::checkpoint, "index_topk_pattern");
    for (const int64_t num_layers : {int64_t{-1}, int64_t{0}, int64_t{1} << 39}) {
        glm["num_hidden_layers"] = num_layers;
        EXPECT_ERROR(pattern({{"index_topk_freq", 4}}), ErrorKind::checkpoint, "ayers");
        EXPECT_ERROR(pattern({{"index_topk_freq", 1}}), ErrorKind::checkpoint, "ayers");
    }
}

// Kimi-K2.5 and K2.6, Kimi-VL.
TEST(HfConfig, TextModelsOfModelsOfImages) {
    const Json text = deepseek_v3();
    for (const char* type : {"kimi_k25", "kimi_vl"}) {
        const Json whole = {
            {"model_type", type}, {"vision_config", {{"hidden_size", 1}}}, {"text_config", text}};
        EXPECT_EQ(to_attributes(parse(whole)), to_attributes(parse(text)));
        Json outside = whole, unnamed = whole;
        outside["quantization_config"] = text["quantization_config"];
        outside["text_config"].erase("quantization_config");
        EXPECT_TRUE(parse(outside).fp8_weights);
        unnamed["text_config"].erase("model_type");
        EXPECT_EQ(to_attributes(parse(unnamed)), to_attributes(parse(text)));
        Json other = whole;
        other["text_config"]["model_type"] = "llama";
        EXPECT_ERROR(parse(other), ErrorKind::checkpoint,
                     "config.json: text_config: model_type \"llama\" is not supported");
        EXPECT_ERROR(parse({{"model_type", type}}), ErrorKind::checkpoint,
                     "config.json: text_config is missing");
    }
}

TEST(HfConfig, ImpossibleValuesAreNamedAsInTheFile) {
    const auto refused = [](const char* key, Json value, const std::string& part) {
        EXPECT_ERROR(parse(with(key, std::move(value))), ErrorKind::checkpoint,
                     "config.json: " + part);
    };
    refused("hidden_size", -1, "hidden_size must be positive, is -1");
    refused("num_hidden_layers", 0, "num_hidden_layers must be positive, is 0");
    refused("num_attention_heads", 0, "num_attention_heads must be positive");
    refused("max_position_embeddings", 0, "max_position_embeddings must be positive");
    refused("intermediate_size", nullptr, "intermediate_size must be positive, is 0");
    refused("moe_intermediate_size", 0, "moe_intermediate_size must be positive");
    refused("first_k_dense_replace", 62, "first_k_dense_replace must be in 0..61, is 62");
    refused("rms_norm_eps", 0, "rms_norm_eps must be positive");
    refused("num_experts_per_tok", 0, "num_experts_per_tok must be positive");
    refused("num_experts_per_tok", 129, "num_experts_per_tok 129 exceeds");
    refused("n_group", 7, "n_routed_experts 256 is not a multiple of n_group 7");
    refused("topk_group", 9, "topk_group 9 exceeds n_group 8");
    Json json = deepseek_v3();
    json["rope_scaling"]["original_max_position_embeddings"] = 0;
    EXPECT_ERROR(parse(json), ErrorKind::checkpoint, "original_max_position_embeddings > 0");
    for (const char* beta : {"beta_fast", "beta_slow"}) {
        json = deepseek_v3();
        json["rope_scaling"][beta] = 0;
        EXPECT_ERROR(parse(json), ErrorKind::checkpoint, std::string(beta) + " > 0");
    }
}

std::vector<std::string> warnings_of(const Json& json) {
    std::vector<std::string> warnings;
    parse_hf_config(json.dump(), "config.json", &warnings);
    return warnings;
}

TEST(HfConfig, KeysThatLookMisspeltAreTold) {
    const auto renamed = [](Json json, const char* from, const char* to) {
        json[to] = json[from];
        json.erase(from);
        return json;
    };
    using Lines = std::vector<std::string>;
    EXPECT_EQ(warnings_of(renamed(deepseek_v3(), "rope_scaling", "rope_scalin")),
              Lines{"config.json: \"rope_scalin\": no such key; did you mean rope_scaling?"});
    EXPECT_EQ(
        warnings_of(renamed(deepseek_v3(), "routed_scaling_factor", "routed_scale_factor")).size(),
        1u);
    Json json = deepseek_v3();
    json["rope_scaling"] = renamed(json["rope_scaling"], "mscale_all_dim", "mscale_all_dims");
    EXPECT_EQ(warnings_of(json), Lines{"config.json: rope_scaling: \"mscale_all_dims\": no such "
                                       "key; did you mean mscale_all_dim?"});
    json = deepseek_v3();
    json["rope_scaling"] = renamed(json["rope_scaling"], "type", "typ");
    EXPECT_EQ(warnings_of(json).size(), 1u);
    json = deepseek_v3();
    json["quantization_config"]["scale_fmr"] = "ue8m0";
    EXPECT_EQ(warnings_of(json).size(), 1u);
    json = deepseek_v3();
    json["rope_scalin"] = 1;  // beside the right one
    EXPECT_TRUE(warnings_of(json).empty());
}

// Keys of published files, and of files that Transformers 4 and 5 write, that Ferry has no use for.
TEST(HfConfig, OtherKeysAreNormal) {
    Json json = deepseek_v3();
    for (const char* key : {"architectures",
                            "attention_dropout",
                            "auto_map",
                            "aux_loss_alpha",
                            "bos_token_id",
                            "eos_token_id",
                            "pad_token_id",
                            "ep_size",
                            "initializer_range",
                            "num_key_value_heads",
                            "pretraining_tp",
                            "seq_aux",
                            "torch_dtype",
                            "dtype",
                            "transformers_version",
                            "use_cache",
                            "_name_or_path",
                            "chunk_size_feed_forward",
                            "head_dim",
                            "qk_head_dim",
                            "id2label",
                            "label2id",
                            "is_encoder_decoder",
                            "is_decoder",
                            "output_attentions",
                            "output_hidden_states",
                            "output_router_logits",
                            "problem_type",
                            "return_dict",
                            "tokenizer_class",
                            "task_specific_params",
                            "tie_encoder_decoder",
                            "torchscript",
                            "top_k",
                            "top_p",
                            "typical_p",
                            "temperature",
                            "max_length",
                            "min_length",
                            "num_beams",
                            "length_penalty",
                            "use_bfloat16",
                            "sliding_window",
                            "_attn_implementation",
                            "router_aux_loss_coef",
                            "partial_rotary_factor",
                            "unsloth_version"})
        json[key] = 1;
    EXPECT_EQ(warnings_of(json), std::vector<std::string>{});
    // The same where as little is there as may be, so that most that Ferry reads is absent.
    for (const char* key :
         {"hidden_act", "moe_layer_freq", "q_lora_rank", "n_shared_experts", "n_group",
          "topk_group", "scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor",
          "num_nextn_predict_layers", "rms_norm_eps", "rope_theta", "max_position_embeddings",
          "attention_bias", "tie_word_embeddings", "rope_scaling", "quantization_config"})
        json.erase(key);
    EXPECT_EQ(warnings_of(json), std::vector<std::string>{});
    json["n_routed_experts"] = nullptr;  // a dense model, as Transformers writes it
    json["n_shared_experts"] = nullptr;
    EXPECT_EQ(warnings_of(json), std::vector<std::string>{});
    json["rope_parameters"] = {{"rope_type", "default"},
                               {"rope_theta", 10000},
                               {"factor", 1},
                               {"partial_rotary_factor", 1}};
    json["quantization_config"] = {
        {"quant_method", "fp8"}, {"dequantize", false}, {"modules_to_not_convert", {"lm_head"}}};
    EXPECT_EQ(warnings_of(json), std::vector<std::string>{});
}

TEST(HfConfig, RefusesMissingAndSenselessFields) {
    for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                            "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                            "first_k_dense_replace", "num_experts_per_tok"})
        EXPECT_ERROR(parse(without(key)), ErrorKind::checkpoint, "config.json", key, "is missing");
    Json no_factor = deepseek_v3();
    no_factor["rope_scaling"].erase("factor");
    EXPECT_ERROR(parse(no_factor), ErrorKind::checkpoint, "rope_scaling: factor is missing");
    EXPECT_ERROR(parse(with("hidden_size", "big")), ErrorKind::checkpoint, "hidden_size",
                 "not an integer");
    EXPECT_ERROR(parse(with("hidden_size", 1e30)), ErrorKind::checkpoint, "hidden_size");
    EXPECT_ERROR(parse(with("hidden_size", 1ull << 63)), ErrorKind::checkpoint, "hidden_size");
    EXPECT_ERROR(parse(with("num_hidden_layers", 1000000)), ErrorKind::checkpoint, "too many");
    EXPECT_ERROR(parse(with("hidden_size", -3)), ErrorKind::checkpoint, "must be positive");
    EXPECT_ERROR(parse(with("rope_theta", "x")), ErrorKind::checkpoint, "rope_theta");
    EXPECT_ERROR(parse(with("norm_topk_prob", 1)), ErrorKind::checkpoint, "norm_topk_prob");
    EXPECT_ERROR(parse_hf_config("[1]", "config.json"), ErrorKind::checkpoint, "not an object");
}

}  // namespace
}  // namespace ferry
