#include "runtime/hf_model.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_hf_model.h"

namespace ferry {
namespace {

using testing::read_whole;
using testing::TempDir;
using testing::TinyHfModel;
using testing::TinyHfOptions;

TEST(HfModel, TensorsCarryTheirBytes) {
    const TempDir dir;
    const TinyHfModel tiny({.dtype = DType::f32});
    tiny.write(dir.path());
    HfModel model(dir.path());
    EXPECT_EQ(read_whole(model, "embed"), tiny.tensors.at("model.embed_tokens.weight").bytes);
    EXPECT_EQ(read_whole(model, "head"), tiny.tensors.at("lm_head.weight").bytes);
    EXPECT_EQ(read_whole(model, "layers/0/ffn/w2"),
              tiny.tensors.at("model.layers.0.mlp.down_proj.weight").bytes);
    EXPECT_EQ(read_whole(model, "layers/2/attn/q_norm"),
              tiny.tensors.at("model.layers.2.self_attn.q_a_layernorm.weight").bytes);
    std::string all;
    for (int e = 0; e < 6; ++e)
        all +=
            tiny.tensors.at("model.layers.1.mlp.experts." + std::to_string(e) + ".up_proj.weight")
                .bytes;
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w3"), all);
    EXPECT_FALSE(model.find("layers/3/attn_norm"));
    EXPECT_ERROR(model.read("x", {}, nullptr), ErrorKind::checkpoint, "has no tensor x");
}

TEST(HfModel, Fp8WeightsHaveScales) {
    const TempDir dir;
    const TinyHfModel tiny({.dtype = DType::fp8_e4m3, .num_files = 1});
    tiny.write(dir.path());
    HfModel model(dir.path());
    EXPECT_EQ(model.find("layers/1/ffn/experts/w1")->dtype, DType::fp8_e4m3);
    EXPECT_EQ(model.find("layers/1/ffn/experts/w1_scale")->shape, (std::vector<int64_t>{6, 1, 2}));
    EXPECT_EQ(read_whole(model, "layers/0/attn/wo_scale"),
              tiny.tensors.at("model.layers.0.self_attn.o_proj.weight_scale_inv").bytes);
    EXPECT_EQ(model.find("embed")->dtype, DType::bf16);
    EXPECT_FALSE(model.find("embed_scale"));
}

// What compressed-tensors packs is int4x2 as it lies in the file.
TEST(HfModel, PackedExpertsAreInt4) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::int4x2});
    tiny.write(dir.path());
    HfModel model(dir.path());
    EXPECT_TRUE(model.description().int4_experts);
    EXPECT_EQ(model.find("layers/1/ffn/experts/w1")->dtype, DType::int4x2);
    EXPECT_EQ(model.find("layers/1/ffn/experts/w1")->shape, (std::vector<int64_t>{6, 64, 80}));
    EXPECT_EQ(model.find("layers/1/ffn/experts/w1_scale")->shape, (std::vector<int64_t>{6, 64, 5}));
    EXPECT_EQ(model.find("layers/1/ffn/shared/w1")->dtype, DType::bf16);
    std::string codes, scales;
    for (int expert = 0; expert < 6; ++expert) {
        const std::string name =
            "model.layers.1.mlp.experts." + std::to_string(expert) + ".down_proj.weight";
        codes += tiny.tensors.at(name + "_packed").bytes;
        scales += tiny.tensors.at(name + "_scale").bytes;
    }
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w2"), codes);
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w2_scale"), scales);
}

TEST(HfModel, OtherLinearLayersMayBePackedToo) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::int4x2});
    const std::string wo = "model.layers.1.self_attn.o_proj.weight";  // [160, 32]
    testing::HfTensor codes{"I32", {160, 4}, std::string(160 * 16, '\x5a')};
    codes.bytes[16] = '\x1c';
    tiny.tensors[wo + "_packed"] = codes;
    tiny.tensors[wo + "_scale"] = {"BF16", {160, 1}, std::string(160 * 2, '\x3f')};
    tiny.tensors.erase(wo);
    tiny.write(dir.path());
    HfModel model(dir.path());
    EXPECT_EQ(model.find("layers/1/attn/wo")->dtype, DType::int4x2);
    EXPECT_EQ(model.find("layers/1/attn/wo")->shape, (std::vector<int64_t>{160, 16}));
    EXPECT_EQ(model.find("layers/1/attn/wo_scale")->shape, (std::vector<int64_t>{160, 1}));
    EXPECT_EQ(read_whole(model, "layers/1/attn/wo"), codes.bytes);
    EXPECT_EQ(read_whole(model, "layers/1/attn/wo_scale"), std::string(160 * 2, '\x3f'));
}

// One scale for 64 values, or for a whole row, is that of two groups of 32, or of all.
TEST(HfModel, LargerGroupsAreThoseOf32) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::int4x2});
    const std::string experts = "model.layers.1.mlp.experts.";
    for (int expert = 0; expert < 6; ++expert) {
        tiny.set_groups(experts + std::to_string(expert) + ".up_proj.weight", 1);    // rows of 160
        tiny.set_groups(experts + std::to_string(expert) + ".down_proj.weight", 1);  // rows of 64
    }
    tiny.write(dir.path());
    HfModel model(dir.path());
    for (const auto& [name, stored, rows, groups] : {std::tuple{"w3", "up_proj", 64, 5},
                                                     {"w2", "down_proj", 160, 2},
                                                     {"w1", "gate_proj", 64, 5}}) {
        const std::string scales = std::string("layers/1/ffn/experts/") + name + "_scale";
        EXPECT_EQ(model.find(scales)->shape, (std::vector<int64_t>{6, rows, groups}));
        std::string expected;
        for (int expert = 0; expert < 6; ++expert) {
            const auto& tensor =
                tiny.tensors.at(experts + std::to_string(expert) + "." + stored + ".weight_scale");
            const int64_t repeat = groups / tensor.shape[1];
            for (size_t i = 0; i < tensor.bytes.size(); i += 2)
                for (int64_t j = 0; j < repeat; ++j) expected += tensor.bytes.substr(i, 2);
        }
        EXPECT_EQ(read_whole(model, scales), expected) << name;
    }
}

TEST(HfModel, BrokenPackedExpertsAreNamed) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::int4x2});
    const std::string experts = "model.layers.1.mlp.experts.";
    tiny.tensors.at(experts + "3.gate_proj.weight_packed").shape = {20, 64};
    tiny.tensors.erase(experts + "2.up_proj.weight_scale");
    tiny.tensors.at(experts + "5.down_proj.weight_scale").dtype = "F16";
    const std::string wq_b = "model.layers.0.self_attn.q_b_proj.weight";  // [48, 24]
    tiny.tensors[wq_b + "_packed"] = tiny.tensors.at(experts + "0.down_proj.weight_packed");
    tiny.tensors.erase(wq_b);
    const std::string wo = "model.layers.0.self_attn.o_proj.weight";  // [160, 32]
    tiny.tensors[wo + "_packed"] = {"I32", {160, 4}, std::string(160 * 16, '\0')};
    tiny.tensors[wo + "_scale"] = {"BF16", {160, 1}, std::string(160 * 2, '\0')};
    tiny.tensors[wo + "_g_idx"] = {"I32", {32}, std::string(32 * 4, '\0')};
    tiny.tensors.erase(wo);
    tiny.tensors.at("model.layers.2.mlp.experts.1.up_proj.weight_scale").shape = {160, 2};
    tiny.write(dir.path());
    EXPECT_ERROR(HfModel{dir.path()}, ErrorKind::checkpoint, dir.path() + ": 6 problems: ",
                 "tensor " + experts +
                     "3.gate_proj.weight_packed is I32 [20, 64], expected I32 "
                     "[64, 20]",
                 "tensor " + experts + "2.up_proj.weight_scale is missing",
                 "tensor " + experts + "5.down_proj.weight_scale is F16 [160, 2], expected BF16",
                 "tensor " + wq_b + "_packed is int4, which rows whose length is no multiple of 32",
                 "tensor " + wo + "_g_idx: columns in another order are not supported",
                 "up_proj.weight_scale is BF16 [160, 2], expected BF16 [64, 5]");
}

TEST(HfModel, FusedExpertsAreCutApart) {
    const TempDir dir;
    const TinyHfModel tiny({.dtype = DType::bf16, .fused_experts = true});
    tiny.write(dir.path());
    HfModel model(dir.path());
    const std::string& fused = tiny.tensors.at("model.layers.1.mlp.experts.gate_up_proj").bytes;
    std::string w1, w3;
    const size_t half = 40 * 160 * 2;
    for (size_t e = 0; e < 6; ++e) {
        w1 += fused.substr(2 * e * half, half);
        w3 += fused.substr((2 * e + 1) * half, half);
    }
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w1"), w1);
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w3"), w3);
    EXPECT_EQ(read_whole(model, "layers/1/ffn/experts/w2"),
              tiny.tensors.at("model.layers.1.mlp.experts.down_proj").bytes);
}

TEST(HfModel, PredictionModuleIsKept) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::bf16, .mtp = true});
    tiny.tensors.erase("model.layers.3.embed_tokens.weight");
    tiny.write(dir.path());
    HfModel model(dir.path());
    EXPECT_EQ(read_whole(model, "mtp/0/eh_proj"),
              tiny.tensors.at("model.layers.3.eh_proj.weight").bytes);
    EXPECT_EQ(model.find("mtp/0/ffn/experts/w2")->shape, (std::vector<int64_t>{6, 160, 40}));
    EXPECT_TRUE(model.find("mtp/0/head"));
    EXPECT_FALSE(model.find("mtp/0/embed"));

    tiny.tensors.erase("model.layers.3.hnorm.weight");  // not one that may be left out
    tiny.write(dir.path());
    EXPECT_ERROR(HfModel{dir.path()}, ErrorKind::checkpoint,
                 "tensor model.layers.3.hnorm.weight is missing");
    tiny.tensors.erase("model.layers.3.eh_proj.weight");  // no module at all
    tiny.write(dir.path());
    EXPECT_FALSE(HfModel(dir.path()).find("mtp/0/head"));
}

// A model of one file without an index, so that warnings name that file.
std::vector<std::string> warnings_of(const TinyHfModel& tiny) {
    const TempDir dir;
    tiny.write(dir.path());
    std::vector<std::string> warnings = HfModel(dir.path()).warnings();
    const std::string file = dir / "model.safetensors: ";
    for (std::string& warning : warnings)
        if (warning.starts_with(file)) warning.erase(0, file.size());
    return warnings;
}

TEST(HfModel, TensorsThatAreNotUsedAreTold) {
    using Lines = std::vector<std::string>;
    TinyHfModel tiny({.num_files = 1});
    const testing::HfTensor other = tiny.tensors.at("model.norm.weight");
    tiny.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = other;
    EXPECT_EQ(warnings_of(tiny), Lines{});
    tiny.tensors["model.layers.1.self_attn.q_proj.bias"] = other;
    EXPECT_EQ(warnings_of(tiny),
              Lines{"1 tensor is not used: \"model.layers.1.self_attn.q_proj.bias\""});
    for (const char* name : {"wq_b", "wk", "k_norm", "weights_proj"})
        tiny.tensors["model.layers.0.self_attn.indexer." + std::string(name)] = other;
    EXPECT_EQ(warnings_of(tiny),
              Lines{"5 tensors are not used: \"model.layers.0.self_attn.indexer.k_norm\", "
                    "\"model.layers.0.self_attn.indexer.weights_proj\", "
                    "\"model.layers.0.self_attn.indexer.wk\", "
                    "\"model.layers.0.self_attn.indexer.wq_b\", ..."});
}

TEST(HfModel, TextModelOfAModelOfImages) {
    const TinyHfModel text({.dtype = DType::int4x2});
    TinyHfModel whole = text;
    const auto config = nlohmann::json::parse(text.config_json);
    whole.config_json =
        nlohmann::json({{"model_type", "kimi_k25"}, {"text_config", config}}).dump();
    whole.tensors.clear();
    for (const auto& [name, tensor] : text.tensors)
        whole.tensors["language_model." + name] = tensor;
    whole.tensors["vision_tower.patch_embed.pos_emb"] = {"F32", {1}, "0123"};
    whole.tensors["mm_projector.proj.0.weight"] = {"F32", {1}, "0123"};
    const TempDir text_dir, whole_dir;
    text.write(text_dir.path());
    whole.write(whole_dir.path());
    HfModel expected(text_dir.path()), model(whole_dir.path());
    ASSERT_EQ(model.warnings().size(), 1U);
    EXPECT_THAT(model.warnings()[0],
                ::testing::HasSubstr("only the text model is loaded; left out: \"mm_projector\", "
                                     "\"vision_tower\" (2 tensors)"));
    ASSERT_EQ(model.tensors().size(), expected.tensors().size());
    for (const auto& [name, tensor] : expected.tensors())
        EXPECT_EQ(testing::read_whole(model, name), testing::read_whole(expected, name)) << name;

    whole.tensors.erase("language_model.model.norm.weight");
    whole.write(whole_dir.path());
    EXPECT_ERROR(HfModel(whole_dir.path()), ErrorKind::checkpoint,
                 "tensor language_model.model.norm.weight is missing");
}

TEST(HfModel, LayersThatAreLeftOutAreTold) {
    using Lines = std::vector<std::string>;
    const auto replace = [](TinyHfModel& tiny, const std::string& from, const std::string& to) {
        tiny.config_json.replace(tiny.config_json.find(from), from.size(), to);
    };
    TinyHfModel cut({.num_files = 1});
    const auto num_of_layer_2 = std::ranges::count_if(
        cut.tensors, [](const auto& t) { return t.first.starts_with("model.layers.2."); });
    replace(cut, "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    EXPECT_EQ(warnings_of(cut),
              Lines{"nothing of layer 2 is used (" + std::to_string(num_of_layer_2) +
                    " tensors): config.json has num_hidden_layers 2, num_nextn_predict_layers 0"});
    replace(cut, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    replace(cut, "\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
    ASSERT_EQ(warnings_of(cut).size(), 1u);
    EXPECT_TRUE(warnings_of(cut)[0].starts_with("nothing of layers 1 to 2 is used"));

    TinyHfModel with_mtp({.mtp = true, .num_files = 1});
    EXPECT_EQ(warnings_of(with_mtp), Lines{});  // it is read
    with_mtp.tensors.erase("model.layers.3.eh_proj.weight");
    ASSERT_EQ(warnings_of(with_mtp).size(), 1u);
    EXPECT_TRUE(warnings_of(with_mtp)[0].starts_with(
        "multi-token prediction layers are left out: layer 3 ("));
    replace(with_mtp, "\"num_nextn_predict_layers\": 1", "\"num_nextn_predict_layers\": 0");
    ASSERT_EQ(warnings_of(with_mtp).size(), 1u);
    EXPECT_TRUE(warnings_of(with_mtp)[0].starts_with("nothing of layer 3 is used"));
}

TEST(HfModel, GateBiasIsTheCheckpointsOwnChoice) {
    const TempDir dir;
    TinyHfModel tiny({});
    std::erase_if(tiny.tensors, [](const auto& entry) {
        return entry.first.ends_with("e_score_correction_bias");
    });
    tiny.write(dir.path());
    EXPECT_FALSE(HfModel(dir.path()).config().has_gate_bias);
    TinyHfModel({}).write(dir.path());
    EXPECT_TRUE(HfModel(dir.path()).config().has_gate_bias);
}

TEST(HfModel, GateBiasOfOneLayerOnlyIsMissing) {
    for (const char* layer : {"1", "2"}) {
        const TempDir dir;
        TinyHfModel tiny({});
        const std::string name =
            fmt::format("model.layers.{}.mlp.gate.e_score_correction_bias", layer);
        ASSERT_EQ(tiny.tensors.erase(name), 1u);
        tiny.write(dir.path());
        EXPECT_ERROR(HfModel{dir.path()}, ErrorKind::checkpoint, "tensor " + name + " is missing");
    }
}

TEST(HfModel, AllProblemsAtOnce) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::fp8_e4m3});
    tiny.tensors.erase("model.norm.weight");
    tiny.tensors.erase("model.layers.2.mlp.experts.4.down_proj.weight");
    tiny.tensors.erase("model.layers.1.self_attn.o_proj.weight_scale_inv");
    tiny.tensors.at("model.layers.0.input_layernorm.weight").dtype = "F16";
    auto& gate = tiny.tensors.at("model.layers.1.mlp.gate.weight");
    gate.shape = {gate.shape[1], gate.shape[0]};
    tiny.tensors.at("model.layers.2.mlp.gate.weight") = {
        "F8_E4M3", {6, 160}, std::string(960, '0')};
    tiny.write(dir.path());
    EXPECT_ERROR(HfModel{dir.path()}, ErrorKind::checkpoint,
                 dir.path() + ": 6 problems: ", "tensor model.norm.weight is missing",
                 "tensor model.layers.2.mlp.experts.4.down_proj.weight is missing",
                 "tensor model.layers.1.self_attn.o_proj.weight_scale_inv is missing",
                 "tensor model.layers.0.input_layernorm.weight has dtype F16",
                 "tensor model.layers.1.mlp.gate.weight has shape [160, 6], expected [6, 160]",
                 "tensor model.layers.2.mlp.gate.weight has dtype F8_E4M3");
}

TEST(HfModel, FilesThatAreMissingOrBrokenAreNamed) {
    const TempDir dir;
    TinyHfModel({.num_files = 3}).write(dir.path());
    std::filesystem::remove(dir / "model-1.safetensors");
    std::filesystem::resize_file(dir / "model-2.safetensors", 4000);
    EXPECT_ERROR(HfModel{dir.path()}, ErrorKind::checkpoint,
                 "model-1.safetensors: cannot be opened", "model-2.safetensors", "truncated");
    const TempDir empty;
    EXPECT_ERROR(HfModel{empty.path()}, ErrorKind::checkpoint, "config.json", "cannot be opened");
}

TEST(HfModel, GoldenModels) {
    const std::string models = FERRY_SOURCE_DIR "/tests/golden/data/models";
    int num = 0;
    for (const auto& entry : std::filesystem::directory_iterator(models)) {
        if (!std::filesystem::exists(entry.path() / "config.json")) continue;
        SCOPED_TRACE(entry.path().string());
        HfModel model(entry.path().string());
        for (const TensorSpec& spec : model_tensors(model.config()))
            EXPECT_EQ(model.find(spec.name)->shape,
                      stored_shape(spec, model.find(spec.name)->dtype));
        EXPECT_EQ(model.warnings(), std::vector<std::string>{});
        ++num;
    }
    EXPECT_GE(num, 1);
    EXPECT_EQ(HfModel(FERRY_SOURCE_DIR "/configs/demo").warnings(), std::vector<std::string>{});
}

}  // namespace
}  // namespace ferry
