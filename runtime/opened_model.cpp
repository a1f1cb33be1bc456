#include "runtime/opened_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "runtime/checkpoint.h"
#include "runtime/checksum.h"
#include "runtime/dummy_weights.h"
#include "runtime/hf_model.h"
#include "runtime/input_file.h"
#include "runtime/json_text.h"
#include "runtime/model_shape.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxTextBytes = 256 << 20;

std::string read_if_there(const std::string& path) {
    return fs::exists(path) ? read_text_file(path, kMaxTextBytes) : std::string();
}

std::string folder_of(const std::string& path) {
    return fs::is_directory(path) ? path : fs::path(path).parent_path().string();
}

void add_checksum(Checksum& sum, const std::string& text) {
    sum.add(text.data(), text.size());
    sum.add("\n", 1);
}

std::string checksum_line(const char* name, const std::string& text) {
    return fmt::format("{}: {:016x}\n", name, checksum(text.data(), text.size()));
}

// Stored weights are known by the checksums that the converter wrote, others by both ends of their
// files.
uint64_t identify(const Checkpoint& checkpoint) {
    Checksum sum;
    for (const Checkpoint::Piece& piece : checkpoint.pieces())
        add_checksum(sum,
                     fmt::format("{} {} {:016x}", piece.name, piece.size_bytes, piece.checksum));
    add_checksum(sum, checkpoint.config_text());
    return sum.value();
}

uint64_t identify(const HfModel& model) {
    constexpr int64_t kEndBytes = 64 << 10;
    std::vector<std::string> paths;
    for (const fs::directory_entry& entry : fs::directory_iterator(model.directory()))
        if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
    Checksum sum;
    for (const std::string& path : paths) {
        const InputFile file(path);
        std::string end(static_cast<size_t>(std::min(kEndBytes, file.size_bytes())), '\0');
        add_checksum(sum,
                     fmt::format("{} {}", fs::path(path).filename().string(), file.size_bytes()));
        file.read_at(0, end.size(), end.data());
        add_checksum(sum, end);
        file.read_at(file.size_bytes() - static_cast<int64_t>(end.size()), end.size(), end.data());
        add_checksum(sum, end);
    }
    add_checksum(sum, model.config_text());
    return sum.value();
}

int64_t total_bytes(const WeightSource& source) {
    int64_t bytes = 0;
    const auto add = [&](const std::string& name) {
        const std::optional<TensorInfo> info = source.find(name);
        if (!info) return;
        int64_t size = size_bytes(info->dtype);
        for (const int64_t extent : info->shape) size *= extent;
        bytes += size;
    };
    for (const TensorSpec& spec : model_tensors(source.config())) {
        add(spec.name);
        add(spec.name + "_scale");
    }
    return bytes;
}

void add_eos_ids(const Json& json, std::vector<int32_t>& tokens) {
    const auto found = json.find("eos_token_id");
    if (found == json.end()) return;
    const auto add = [&](const Json& id) {
        if (id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX)
            tokens.push_back(id.get<int32_t>());
    };
    if (found->is_array())
        std::for_each(found->begin(), found->end(), add);
    else
        add(*found);
}

// The special tokens around a text as tokenizer_config.json beside the tokenizer has them; where it
// leaves that to tokenizer.json, nothing changes. `identity` gets a line when it does.
Tokenizer configured(const Tokenizer& tokenizer, const std::string& path, std::string& identity) {
    const ChatTemplate::SpecialTokens tokens =
        ChatTemplate::load_special_tokens(fs::path(path).parent_path());
    if (!tokens.adds_bos) return tokenizer;
    const auto ids = [&](bool is_added, const std::string& token) {
        std::vector<int32_t> list;
        if (!is_added || token.empty()) return list;
        const std::optional<int32_t> id = tokenizer.token_id(token);
        if (!id)
            throw Error(ErrorKind::checkpoint,
                        "{}: has no token {}, which tokenizer_config.json puts around a text", path,
                        in_quotes(token));
        list.push_back(*id);
        return list;
    };
    const std::vector<int32_t> before = ids(*tokens.adds_bos, tokens.bos_token);
    const std::vector<int32_t> after = ids(*tokens.adds_eos, tokens.eos_token);
    identity +=
        fmt::format("special_tokens: [{}] [{}]\n", fmt::join(before, " "), fmt::join(after, " "));
    return tokenizer.with_special_tokens(before, after);
}

void open_texts(const Config& config, const std::string& folder, OpenedModel& model) {
    std::string tokenizer_path = config.model.tokenizer;
    if (tokenizer_path.empty() && !folder.empty())
        tokenizer_path = Tokenizer::find(folder).string();
    if (!tokenizer_path.empty()) {
        model.identity += checksum_line("tokenizer", read_text_file(tokenizer_path, kMaxTextBytes));
        model.tokenizer =
            configured(Tokenizer::load(tokenizer_path), tokenizer_path, model.identity);
    }
    if (!config.model.chat_template.empty()) {
        const std::string text =
            read_text_file(config.model.chat_template, kMaxTextBytes, ErrorKind::input);
        model.chat_template.emplace(text,
                                    folder.empty() ? ChatTemplate::SpecialTokens{}
                                                   : ChatTemplate::load_special_tokens(folder),
                                    config.model.chat_template);
        model.identity += checksum_line("chat_template", text);
    } else if (!folder.empty()) {
        try {
            model.chat_template = ChatTemplate::load(folder);
        } catch (const Error& error) {
            throw Error(error.kind(), "{}; model.chat_template: FILE takes another template",
                        error.what());
        }
        model.identity +=
            checksum_line("chat_template", read_if_there(folder + "/chat_template.jinja") +
                                               read_if_there(folder + "/tokenizer_config.json"));
    }
    if (folder.empty()) return;
    model.eos_tokens = find_eos_tokens(folder, model.tokenizer);
    model.identity += fmt::format("eos_tokens: {}\n", fmt::join(model.eos_tokens, " "));
}

void open_checkpoint(const Config& config, OpenedModel& model) {
    model.name = config.model.path;
    model.source = open_weights(config.model.path);
    if (const auto* checkpoint = dynamic_cast<const Checkpoint*>(model.source.get())) {
        model.numerics.power_of_two_scales = checkpoint->description().ue8m0_scales;
        model.identity = fmt::format("weights: {:016x}\n", identify(*checkpoint));
    } else if (const auto* hf = dynamic_cast<const HfModel*>(model.source.get())) {
        model.numerics.power_of_two_scales = hf->description().ue8m0_scales;
        model.identity = fmt::format("weights: {:016x}\n", identify(*hf));
        model.warnings = hf->warnings();
    }
}

bool drafts_by_mtp(const Config& config) {
    return config.engine.draft_tokens > 0 && config.engine.drafter == Config::Engine::Drafter::mtp;
}

DType dummy_dtype(Config::Model::Weights dtype, DType published) {
    switch (dtype) {
        case Config::Model::Weights::automatic:
            return published;
        case Config::Model::Weights::f32:
            return DType::f32;
        case Config::Model::Weights::bf16:
            return DType::bf16;
        case Config::Model::Weights::fp8:
            return DType::fp8_e4m3;
        case Config::Model::Weights::int4:
        case Config::Model::Weights::int4_layers:
        case Config::Model::Weights::int4_all:
            return DType::int4x2;
    }
    return published;
}

Int4Weights int4_weights(Config::Model::Weights dtype) {
    if (dtype == Config::Model::Weights::int4_all) return Int4Weights::all;
    return dtype == Config::Model::Weights::int4_layers ? Int4Weights::layers
                                                        : Int4Weights::experts;
}

void open_dummy(const Config& config, OpenedModel& model) {
    const ModelShape shape = load_model_shape(config.model.dummy);
    model.name = shape.name;
    model.source = std::make_unique<DummyWeights>(
        shape.config, DummyOptions{.seed = config.model.seed,
                                   .dtype = dummy_dtype(config.model.dtype, shape.weights),
                                   .int4 = int4_weights(config.model.dtype),
                                   .n_layers = config.model.layers,
                                   .mtp = drafts_by_mtp(config)});
    model.identity = checksum_line("shape", read_text_file(config.model.dummy, kMaxTextBytes));
}

bool stored_in_f32(const WeightSource& source) {
    return std::ranges::all_of(model_tensors(source.config()), [&](const TensorSpec& spec) {
        const std::optional<TensorInfo> info = source.find(spec.name);
        return !spec.is_linear || !info || info->dtype == DType::f32;
    });
}

bool has_int4(const WeightSource& source) {
    return std::ranges::any_of(model_tensors(source.config()), [&](const TensorSpec& spec) {
        const std::optional<TensorInfo> info = source.find(spec.name);
        return info && info->dtype == DType::int4x2;
    });
}

void add_mtp(OpenedModel& model) {
    const ModelConfig& config = model.source->config();
    if (config.n_layers == config.n_dense_layers)
        throw Error(ErrorKind::usage, "engine.drafter: mtp is for models with MoE layers");
    const std::optional<TensorInfo> projection = model.source->find("mtp/0/eh_proj");
    if (!projection)
        throw Error(ErrorKind::usage,
                    "engine.drafter: mtp, but {} has no multi-token-prediction module; "
                    "prompt_lookup needs none",
                    model.name);
    if (const std::optional<ScaleForm> form = scale_form(projection->dtype);
        form && config.dim % form->columns != 0)
        throw Error(ErrorKind::usage,
                    "engine.drafter: mtp, but the halves of {}'s eh_proj, {} columns of {}, have "
                    "no scales of their own; prompt_lookup needs none",
                    model.name, config.dim, to_string(projection->dtype));
    if (config.n_mtp_layers == 0) model.source->add_mtp();
}

// Whatever reads the latent cache rounds to bf16: attention, and what expands latents to keys and
// values.
bool reads_latents_in_bf16(const WeightSource& source, const CpuOptions& options) {
    return options.bf16_activations && source.config().kv_lora_rank % 2 == 0 &&
           std::ranges::all_of(model_tensors(source.config()), [&](const TensorSpec& spec) {
               if (!spec.name.ends_with("/wkv_b")) return true;
               const std::optional<TensorInfo> info = source.find(spec.name);
               return info && rows_as(info->dtype) == DType::bf16;
           });
}

}  // namespace

CpuOptions cpu_options(const Config& config, const WeightSource& source) {
    using Rounding = Config::NumericsSection::Rounding;
    const Rounding rounding = config.numerics.bf16_activations;
    CpuOptions options;
    options.bf16_activations =
        rounding == Rounding::automatic ? !stored_in_f32(source) : rounding != Rounding::off;
    options.amx_sums = rounding == Rounding::amx;
    options.int8_activations = config.numerics.int8_activations;
    if (options.int8_activations && !has_int4(source))
        throw Error(ErrorKind::usage,
                    "numerics.int8_activations: the model has no int4 weights; set it to false, or "
                    "convert with --dtype int4");
    const Config::Switch compress = config.engine.compress_weights;
    options.compress_weights = compress == Config::Switch::automatic
                                   ? options.bf16_activations && uses_bf16_dots()
                                   : compress == Config::Switch::on;
    return options;
}

PromptEncoder OpenedModel::prompt_encoder() const {
    PromptEncoder encoder;
    encoder.vocab_size = source->config().vocab_size;
    if (!tokenizer) return encoder;
    encoder.encode_text = [text_tokenizer = *tokenizer](std::string_view text) {
        return text_tokenizer.encode(text);
    };
    if (chat_template)
        encoder.encode_messages = [text_tokenizer = *tokenizer, messages_template = *chat_template](
                                      const std::string& messages, const std::string& variables) {
            return text_tokenizer.encode(
                messages_template.render_json(messages, /*add_generation_prompt=*/true, variables),
                false);
        };
    return encoder;
}

OpenedModel open_model(const Config& config) {
    OpenedModel model;
    model.numerics = numerics_of(config);
    if (config.model.dummy.empty() && config.model.path.empty())
        throw Error(ErrorKind::usage,
                    "no model: set model.path (or model.dummy), or give --model FOLDER");
    if (config.model.dummy.empty())
        open_checkpoint(config, model);
    else
        open_dummy(config, model);
    if (config.engine.device == Config::Engine::Device::cpu) {
        model.cpu = cpu_options(config, *model.source);
        // The same bits, in half the memory.
        if (reads_latents_in_bf16(*model.source, model.cpu))
            model.numerics.cache_dtype = DType::bf16;
    }
    // After what numerics go by, which drafts must not change.
    if (drafts_by_mtp(config)) add_mtp(model);
    model.weight_bytes = total_bytes(*model.source);
    open_texts(config, config.model.path.empty() ? "" : folder_of(config.model.path), model);
    return model;
}

std::vector<int32_t> find_eos_tokens(const std::string& folder,
                                     const std::optional<Tokenizer>& tokenizer) {
    std::vector<int32_t> tokens;
    for (const char* name : {"/generation_config.json", "/config.json"}) {
        const std::string text = read_if_there(folder + name);
        if (!text.empty()) add_eos_ids(parse_json(text, folder + name), tokens);
    }
    const std::string eos = ChatTemplate::load_special_tokens(folder).eos_token;
    if (tokenizer && !eos.empty())
        if (const std::optional<int32_t> id = tokenizer->token_id(eos)) tokens.push_back(*id);
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    return tokens;
}

}  // namespace ferry
