#include "tests/support/tiny_hf_model.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "runtime/hf_config.h"
#include "runtime/hf_names.h"
#include "runtime/stored_tensor.h"
#include "tests/support/temp_dir.h"

namespace ferry::testing {
namespace {

using Json = nlohmann::ordered_json;

HfTensor random_tensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    Random random(std::hash<std::string>()(name));
    HfTensor tensor{dtype == DType::f32    ? "F32"
                    : dtype == DType::bf16 ? "BF16"
                                           : "F8_E4M3",
                    shape, std::string(static_cast<size_t>(count * size_bytes(dtype)), '\0')};
    for (int64_t i = 0; i < count; ++i) {
        const float value = random.next_uniform() - 0.5f;
        char* at = tensor.bytes.data() + i * size_bytes(dtype);
        if (dtype == DType::f32) {
            std::memcpy(at, &value, 4);
        } else if (dtype == DType::bf16) {
            const uint16_t bits = f32_to_bf16(value);
            std::memcpy(at, &bits, 2);
        } else {
            *at = static_cast<char>(f32_to_fp8_e4m3(value * 800));
        }
    }
    return tensor;
}

// [out, in] of int4: NAME_packed, NAME_scale and NAME_shape.
void add_packed(std::map<std::string, HfTensor>& tensors, const std::string& name, int64_t out,
                int64_t in) {
    HfTensor codes{"I32", {out, in / 8}, std::string(static_cast<size_t>(out * in / 2), '\0')};
    Random random(std::hash<std::string>()(name));
    for (char& byte : codes.bytes) byte = static_cast<char>(random.next_u32());
    tensors[name + "_packed"] = std::move(codes);
    tensors[name + "_scale"] = random_tensor(name + "_scale", DType::bf16, {out, in / kInt4Group});
    HfTensor shape{"I64", {2}, std::string(16, '\0')};
    const int64_t extents[] = {out, in};
    std::memcpy(shape.bytes.data(), extents, 16);
    tensors[name + "_shape"] = std::move(shape);
}

Json config_of(const TinyHfOptions& options) {
    const bool is_int4 = options.dtype == DType::int4x2;
    Json c = {{"architectures", {"DeepseekV3ForCausalLM"}},
              {"model_type", "deepseek_v3"},
              {"vocab_size", 48},
              {"hidden_size", 160},
              {"intermediate_size", 136},
              {"moe_intermediate_size", options.moe_inter > 0 ? options.moe_inter
                                        : is_int4             ? 64
                                                              : 40},
              {"num_hidden_layers", 3},
              {"first_k_dense_replace", 1},
              {"num_attention_heads", 2},
              {"q_lora_rank", 24},
              {"kv_lora_rank", 32},
              {"qk_nope_head_dim", 16},
              {"qk_rope_head_dim", 8},
              {"v_head_dim", 16},
              {"n_routed_experts", options.experts},
              {"n_shared_experts", 1},
              {"num_experts_per_tok", 2},
              {"n_group", 1},
              {"topk_group", 1},
              {"scoring_func", "sigmoid"},
              {"topk_method", "noaux_tc"},
              {"norm_topk_prob", true},
              {"routed_scaling_factor", 2.5},
              {"rms_norm_eps", 1e-6},
              {"rope_theta", 10000},
              {"max_position_embeddings", 128},
              {"tie_word_embeddings", options.tied},
              {"num_nextn_predict_layers", options.mtp ? 1 : 0}};
    if (options.dtype == DType::fp8_e4m3)
        c["quantization_config"] = {{"quant_method", "fp8"},
                                    {"fmt", "e4m3"},
                                    {"activation_scheme", "dynamic"},
                                    {"weight_block_size", {128, 128}}};
    if (is_int4)  // as Kimi-K2-Thinking has it
        c["quantization_config"] = {
            {"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"kv_cache_scheme", nullptr},
            {"ignore", {"lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"}},
            {"config_groups",
             {{"group_0",
               {{"input_activations", nullptr},
                {"output_activations", nullptr},
                {"targets", {"Linear"}},
                {"weights",
                 {{"actorder", nullptr},
                  {"block_structure", nullptr},
                  {"dynamic", false},
                  {"group_size", 32},
                  {"num_bits", 4},
                  {"observer", "minmax"},
                  {"observer_kwargs", Json::object()},
                  {"strategy", "group"},
                  {"symmetric", true},
                  {"type", "int"}}}}}}}};
    return c;
}

}  // namespace

std::string safetensors_bytes(const std::string& header, const std::string& data) {
    std::string file(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    return file + header + data;
}

std::string safetensors_bytes(const std::vector<std::pair<std::string, HfTensor>>& tensors) {
    Json header = {{"__metadata__", {{"format", "pt"}}}};
    std::string data;
    for (const auto& [name, tensor] : tensors) {
        const size_t begin = data.size();
        data += tensor.bytes;
        header[name] = {{"dtype", tensor.dtype},
                        {"shape", tensor.shape},
                        {"data_offsets", {begin, data.size()}}};
    }
    return safetensors_bytes(header.dump(), data);
}

TinyHfModel::TinyHfModel(const TinyHfOptions& options)
    : config_json(config_of(options).dump(2)), num_files_(options.num_files) {
    const ModelConfig config = parse_hf_config(config_json, "config.json").model;
    std::vector<TensorSpec> specs = model_tensors(config);
    if (options.mtp)
        for (TensorSpec& spec : mtp_tensors(config, 0)) specs.push_back(std::move(spec));
    const DType plain = options.dtype == DType::f32 ? DType::f32 : DType::bf16;
    for (const TensorSpec& spec : specs) {
        const HfPlace place = hf_place(spec.name, config.n_layers);
        const bool is_block_linear =
            spec.is_linear && !spec.name.ends_with("head") && !spec.name.ends_with("eh_proj");
        const DType dtype = spec.name.ends_with("gate/bias") ? DType::f32
                            : is_block_linear && (options.dtype != DType::int4x2 || spec.is_expert)
                                ? options.dtype
                                : plain;
        const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
            if (dtype == DType::int4x2) return add_packed(tensors, name, shape[0], shape[1]);
            tensors[name] = random_tensor(name, dtype, shape);
            if (dtype != DType::fp8_e4m3) return;
            std::vector<int64_t> blocks = shape;
            for (size_t i = blocks.size() - 2; i < blocks.size(); ++i)
                blocks[i] = (blocks[i] + 127) / 128;
            tensors[name + "_scale_inv"] = random_tensor(name + "_scale_inv", DType::f32, blocks);
        };
        if (!spec.is_expert) {
            add(place.name, spec.shape);
        } else if (options.fused_experts) {
            std::vector<int64_t> shape = spec.shape;
            shape[1] *= place.fused_num;
            if (!tensors.contains(place.fused_name)) add(place.fused_name, shape);
        } else {
            for (int64_t expert = 0; expert < spec.shape[0]; ++expert)
                add(place.of_expert(expert), {spec.shape[1], spec.shape[2]});
        }
    }
}

void TinyHfModel::set_groups(const std::string& name, int64_t num) {
    HfTensor& scales = tensors.at(name + "_scale");
    scales.shape[1] = num;
    scales.bytes.resize(static_cast<size_t>(scales.shape[0] * num * 2));
}

void TinyHfModel::write(const std::string& directory) const {
    std::filesystem::create_directories(directory);
    write_file(directory + "/config.json", config_json);
    write_file(directory + "/tokenizer.json", "{\"model\": {}}\n");
    std::vector<std::vector<std::pair<std::string, HfTensor>>> files(
        static_cast<size_t>(num_files_));
    Json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
    const auto file_name = [&](size_t i) {
        return num_files_ == 1 ? std::string("model.safetensors")
                               : "model-" + std::to_string(i) + ".safetensors";
    };
    size_t next = 0;
    for (const auto& [name, tensor] : tensors) {
        const size_t file = next++ * files.size() / tensors.size();
        files[file].emplace_back(name, tensor);
        index["weight_map"][name] = file_name(file);
    }
    for (size_t i = 0; i < files.size(); ++i)
        write_file(directory + "/" + file_name(i), safetensors_bytes(files[i]));
    if (num_files_ > 1) write_file(directory + "/model.safetensors.index.json", index.dump());
}

std::string read_whole(WeightSource& source, const std::string& name) {
    const TensorInfo info = source.find(name).value();
    std::string bytes(static_cast<size_t>(size_bytes(info)), '\0');
    source.read(name, whole_box(info.shape), bytes.data());
    return bytes;
}

}  // namespace ferry::testing
