#include "runtime/config.h"

#include <filesystem>
#include <fstream>
#include <limits>

#include "runtime/json_text.h"
#include "runtime/scheduler.h"
#include "runtime/yaml.h"

namespace ferry {
namespace {

constexpr double kNoLimit = 0x1p53;  // integers that a double holds exactly
constexpr Changes kResults = Changes::results;
constexpr Changes kNothing = Changes::nothing;

std::string read_file(const std::string& path) {
    if (std::error_code ignored; std::filesystem::is_directory(path, ignored))
        throw Error(
            ErrorKind::usage,
            "{}: is a folder, and a run is a YAML file; a checkpoint's folder goes with --model",
            path);
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw Error(ErrorKind::usage, "{}: this configuration cannot be opened", path);
    std::string text(kMaxYamlBytes + 1, '\0');
    stream.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (stream.bad()) throw Error(ErrorKind::usage, "{}: cannot be read", path);
    text.resize(static_cast<size_t>(stream.gcount()));
    return text;
}

Choice switch_of(Config::Switch& value) {
    return choice(value, {"auto", "true", "false"});
}

Config make_config(const YamlValue& root, const std::string& name,
                   std::span<const std::string> overrides) {
    Config config;
    FieldOrigins origins;
    const std::vector<Field> fields = config_fields(config);
    assign_all(fields, root, name, ErrorKind::usage, &origins);
    for (const std::string& assignment : overrides) assign_text(fields, assignment, &origins);
    check_config(config, origins, name);
    return config;
}

}  // namespace

std::vector<Field> sampling_fields(SamplingParams& params, const std::string& prefix) {
    const auto key = [&](const char* name) { return prefix + name; };
    // clang-format off
    return {
        {key("temperature"), &params.temperature, {0, 100}, kResults, "0: greedy; 1: the model's own probabilities"},
        {key("top_k"), &params.top_k, {0, kNoLimit}, kResults, "keep this many most likely tokens; 0: all"},
        {key("top_p"), &params.top_p, {0, 1}, kResults, "keep the most likely tokens that together reach this probability; 1: all"},
        {key("min_p"), &params.min_p, {0, 1}, kResults, "keep tokens at least this likely, relative to the most likely; 0: all"},
        {key("repetition_penalty"), &params.repetition_penalty, {0.01, 100}, kResults, "above 1: tokens of prompt and output become less likely"},
        {key("seed"), &params.seed, {}, kResults, "of the random draws; the same seed, id and prompt give the same text"},
        {key("n"), &params.n, {1, 4096}, kResults, "samples of each prompt"},
        {key("max_tokens"), &params.max_tokens, {1, kNoLimit}, kResults, "longest output"},
        {key("min_tokens"), &params.min_tokens, {0, kNoLimit}, kResults, "before these, nothing stops the output"},
        {key("stop"), &params.stop, {}, kResults, "strings that end the output, which leaves them out"},
        {key("stop_token_ids"), &params.stop_token_ids, {}, kResults, "tokens that end the output, beside the model's end-of-sentence"},
        {key("ignore_eos"), &params.ignore_eos, {}, kResults, "go on after the model's end-of-sentence"},
        {key("logprobs"), &params.logprobs, {0, 1000}, kResults, "log-probabilities of chosen tokens and of this many most likely ones; null: none"},
    };
    // clang-format on
}

std::vector<Field> config_fields(Config& config) {
    Config& c = config;
    // clang-format off
    std::vector<Field> fields = {
        {"model.path", &c.model.path, {}, kNothing, "folder of a converted checkpoint (ferry convert), or its model.h5"},
        {"model.dummy", &c.model.dummy, {}, kResults, "instead of path: a shape (configs/models/*.yaml) to fill with random weights"},
        {"model.layers", &c.model.layers, {0, 10000}, kResults, "of a dummy model, only the first layers; 0: all"},
        {"model.dtype", choice(c.model.dtype, {"auto", "f32", "bf16", "fp8", "int4", "int4-layers", "int4-all"}), {}, kResults, "of a dummy model's weights (as ferry convert --dtype); auto: as published"},
        {"model.seed", &c.model.seed, {}, kResults, "of a dummy model's weights"},
        {"model.tokenizer", &c.model.tokenizer, {}, kNothing, "tokenizer.json, or Kimi's or Moonlight's tiktoken.model; empty: the checkpoint's own"},
        {"model.chat_template", &c.model.chat_template, {}, kNothing, "file with a Jinja template for messages; empty: the checkpoint's own"},

        {"checkpoint.verify", choice(c.checkpoint.verify, {"full", "off"}), {}, kNothing, "compare checksums while loading"},

        {"numerics.fp8_activations", &c.numerics.fp8_activations, {}, kResults, "quantise the inputs of fp8 weights, as DeepSeek does; false: widen the weights"},
        {"numerics.bf16_activations", choice(c.numerics.bf16_activations, {"auto", "true", "false", "amx"}), {}, kResults, "round the inputs of bf16 weights and of attention to bf16, as GPUs do anyway; on CPUs with AVX512_BF16 up to twice as fast, elsewhere the same bits; auto: unless the model is stored in f32; amx: and sum products as AMX does, for CPUs that have it (elsewhere the same bits, slower)"},
        {"numerics.int8_activations", &c.numerics.int8_activations, {}, kResults, "round the inputs of int4 weights to int8, each 32 with a scale; CPUs only, there 1.5 to 3 times as fast; false: multiply them as those of bf16 weights"},
        {"numerics.cache_dtype", choice(c.numerics.cache_dtype, {"f32", "bf16"}), {}, kResults, "of the latent cache; tensor cores of GPUs take bf16 only; f32 takes half the memory where bf16_activations rounds it anyway (weights of attention in bf16): the same bits"},
        {"numerics.tp_slices", &c.numerics.tp_slices, {1, 1024}, kResults, "row-parallel sums are taken over this many slices; a multiple of layout.tp_size"},

        {"layout.mode", choice(c.layout.mode, {"colocated", "disaggregated", "from_launcher"}), {}, kNothing, "every rank does attention and experts, or each rank one of them; from_launcher: as the job's two components say"},
        {"layout.attention_ranks", &c.layout.attention_ranks, {0, 1e6}, kNothing, "0: what expert_ranks leaves (disaggregated), all (colocated)"},
        {"layout.expert_ranks", &c.layout.expert_ranks, {0, 1e6}, kNothing, "0: what attention_ranks leaves (disaggregated), all (colocated)"},
        {"layout.tp_size", &c.layout.tp_size, {0, 1e6}, kNothing, "attention ranks that share dense layers, shared experts, embedding and head; 0: those of a node"},
        {"layout.placement", &c.layout.placement, {}, kNothing, "experts on ranks: contiguous (in order), balanced (by measured load), or a FILE.json that lists them"},
        {"layout.expert_load", &c.layout.expert_load, {}, kNothing, "for balanced placement: a file that log.expert_load wrote"},
        {"layout.redundant_experts", &c.layout.redundant_experts, {0, 1e6}, kNothing, "for balanced placement: extra copies of the busiest experts"},

        {"exchange.transport", choice(c.exchange.transport, {"auto", "mpi", "ucx", "nccl", "self"}), {}, kNothing, "how rows travel; self: one rank only"},
        {"exchange.dtype", choice(c.exchange.dtype, {"f32", "bf16", "fp8"}), {}, kResults, "rows are rounded to this at the exchange, also when they do not leave their rank"},
        {"exchange.mode", choice(c.exchange.mode, {"auto", "bounded", "sized"}), {}, kNothing, "one message of fixed capacity, or counts first and then exactly the rows"},
        {"exchange.bounded_tokens", &c.exchange.bounded_tokens, {0, 1e6}, kNothing, "tokens that a bounded message holds; 0: as many as fit the mode"},
        {"exchange.progress_thread", &c.exchange.progress_thread, {}, kNothing, "ucx: a thread of its own drives the network, also while kernels run"},
        {"exchange.combine", choice(c.exchange.combine, {"exact", "reduced"}), {}, kResults, "one row per (token, expert) comes back, or one sum per rank (fewer bytes, bits depend on the layout; not with copies of experts)"},

        {"engine.device", choice(c.engine.device, {"cpu", "cuda"}), {}, kResults, "what computes"},
        {"engine.threads", &c.engine.threads, {0, 4096}, kNothing, "of each rank; 0: the cores that it may run on, or what a CPU quota is worth, shared with the node's other ranks"},
        {"engine.compress_weights", switch_of(c.engine.compress_weights), {}, kNothing, "hold bf16 weights in 12.25 bits a value, without loss: less memory, faster decode, slower loading; CPU only; auto: with AVX512_BF16, if inputs are rounded to bf16"},
        {"engine.max_batch", &c.engine.max_batch, {1, 65536}, kNothing, "requests that run at once on a rank"},
        {"engine.max_batch_tokens", &c.engine.max_batch_tokens, {1, 1 << 20}, kNothing, "tokens of a step, prompt chunks included; at least max_batch"},
        {"engine.max_prefill_chunk", &c.engine.max_prefill_chunk, {1, 1 << 20}, kNothing, "tokens of one prompt in a step"},
        {"engine.max_context", &c.engine.max_context, {0, kNoLimit}, kResults, "longest prompt with its output; 0: what the model was made for, as far as the cache holds it"},
        {"engine.cache_gib", &c.engine.cache_gib, {0.001, 1e6}, kNothing, "memory of the latent cache on a rank"},
        {"engine.cache_pages", &c.engine.cache_pages, {0, kNoLimit}, kNothing, "pages of 64 tokens instead of cache_gib; 0: as many as cache_gib holds"},
        {"engine.prefill_gib", &c.engine.prefill_gib, {0, 1e6}, kNothing, "most memory on a rank for prompts that take several steps or micro-batches, or go on from a prefix in the cache: expanded keys and values, of as many layers as fit; 0: each expands them anew"},
        {"engine.micro_batches", &c.engine.micro_batches, {1, 4}, kNothing, "slices of a step, so that one computes while another travels"},
        {"engine.draft_tokens", &c.engine.draft_tokens, {0, kMostDrafts}, kNothing, "speculative decoding: so many next tokens of a request, at most, are guessed and computed along with it; the same tokens come out, in fewer steps; 0: off"},
        {"engine.draft_acceptance", &c.engine.draft_acceptance, {0, 1}, kNothing, "a draft of mtp is tried if those that were about as probable have been right at least so often; 0: all draft_tokens"},
        {"engine.drafter", choice(c.engine.drafter, {"prompt_lookup", "mtp"}), {}, kNothing, "who guesses draft_tokens: prompt_lookup, what stood behind the last tokens before, for texts that repeat what they were given; mtp, the model's own multi-token-prediction module, if it comes with one"},
        {"engine.prefix_cache", &c.engine.prefix_cache, {}, kNothing, "requests that begin alike share what was computed"},
        {"engine.cuda_graphs", &c.engine.cuda_graphs, {}, kNothing, "device cuda: decode steps are recorded once per batch size and repeated as a whole, by all ranks together (one rank, or NCCL; not with mode sized or log.trace)"},
        {"engine.stall_timeout_s", &c.engine.stall_timeout_s, {0, 1e9}, kNothing, "a rank without progress for so long ends the job; 0: never"},
    };
    const std::vector<Field> sampling = sampling_fields(c.sampling, "sampling.");
    fields.insert(fields.end(), sampling.begin(), sampling.end());
    const std::vector<Field> rest = {
        {"input.file", &c.input.file, {}, kNothing, "JSONL with one request in each line; - : standard input"},
        {"input.prompt", &c.input.prompt, {}, kNothing, "instead of file: one request for each text"},

        {"output.dir", &c.output.dir, {}, kNothing, "folder for completions.jsonl; a run that was stopped resumes there; empty: standard output"},
        {"output.timings", &c.output.timings, {}, kNothing, "write when each request started and ended (false: runs can be compared byte for byte)"},
        {"output.sync_interval_s", &c.output.sync_interval_s, {0, 3600}, kNothing, "finished requests reach the disk at least so often; 0: each at once"},

        {"log.level", choice(c.log.level, {"debug", "info", "warn", "error"}), {}, kNothing, "least important lines to write"},
        {"log.file", &c.log.file, {}, kNothing, "instead of standard error"},
        {"log.trace", &c.log.trace, {}, kNothing, "file for a Chrome/Perfetto trace of the run; a benchmark of several cases writes one for each, named after it"},
        {"log.expert_load", &c.log.expert_load, {}, kNothing, "file for the number of rows that each expert received (in the last layer, only rows whose logits are wanted go to experts)"},
        {"log.routing", &c.log.routing, {}, kNothing, "file for what every token chose at every MoE layer, for ferry bench exchange --routing"},
        {"log.progress", choice(c.log.progress, {"auto", "on", "off"}), {}, kNothing, "requests done, tokens/s, ETA; auto: on"},
    };
    // clang-format on
    fields.insert(fields.end(), rest.begin(), rest.end());
    return fields;
}

void check_config(const Config& config, const FieldOrigins& origins, const std::string& name) {
    const Config& c = config;
    const auto fail = [&](const std::string& key, const std::string& what) {
        const auto origin = origins.find(key);
        throw Error(ErrorKind::usage, "{}: {}: {}", origin == origins.end() ? name : origin->second,
                    key, what);
    };

    if (!c.model.path.empty() && !c.model.dummy.empty())
        fail("model.dummy", "model.path is set too; give one of them");
    // By value, not by whether it was given: the effective configuration must read back.
    const Config defaults;
    if (c.model.dummy.empty()) {
        const char* only_dummy = "is for a dummy model only (model.dummy)";
        if (c.model.layers != defaults.model.layers) fail("model.layers", only_dummy);
        if (c.model.dtype != defaults.model.dtype) fail("model.dtype", only_dummy);
        if (c.model.seed != defaults.model.seed) fail("model.seed", only_dummy);
    }

    const auto& layout = c.layout;
    if (layout.mode == Config::Layout::Mode::disaggregated) {
        if (layout.attention_ranks == 0 && layout.expert_ranks == 0)
            fail("layout.mode",
                 "disaggregated needs layout.attention_ranks or layout.expert_ranks, or both");
    } else if (layout.mode == Config::Layout::Mode::from_launcher) {
        const char* told = "the launcher says how many there are (layout.mode: from_launcher)";
        if (layout.attention_ranks > 0) fail("layout.attention_ranks", told);
        if (layout.expert_ranks > 0) fail("layout.expert_ranks", told);
    } else if (layout.attention_ranks > 0 && layout.expert_ranks > 0 &&
               layout.attention_ranks != layout.expert_ranks) {
        fail("layout.expert_ranks",
             fmt::format("colocated ranks do both: {} expert ranks do not go with {} attention "
                         "ranks; leave one out, or set layout.mode=disaggregated",
                         layout.expert_ranks, layout.attention_ranks));
    }
    if (layout.tp_size > 0) {
        if (layout.attention_ranks % layout.tp_size != 0)
            fail("layout.tp_size", fmt::format("{} does not divide the {} attention ranks",
                                               layout.tp_size, layout.attention_ranks));
        if (c.numerics.tp_slices % layout.tp_size != 0)
            fail("layout.tp_size", fmt::format("{} does not divide numerics.tp_slices = {}",
                                               layout.tp_size, c.numerics.tp_slices));
    }
    const bool balanced = layout.placement == "balanced";
    if (!balanced && layout.placement != "contiguous" && !layout.placement.ends_with(".json"))
        fail("layout.placement", fmt::format("must be contiguous, balanced or a FILE.json; is {}",
                                             in_quotes(layout.placement)));
    if (balanced && layout.expert_load.empty())
        fail("layout.placement", "balanced needs layout.expert_load, which log.expert_load writes");
    if (!balanced && !layout.expert_load.empty())
        fail("layout.expert_load", "is for layout.placement: balanced only");
    if (!balanced && layout.redundant_experts > 0)
        fail("layout.redundant_experts", "is for layout.placement: balanced only");

    if (c.exchange.transport == Config::Exchange::Transport::nccl &&
        c.engine.device != Config::Engine::Device::cuda)
        fail("exchange.transport", "nccl needs engine.device: cuda");
    if (c.exchange.transport == Config::Exchange::Transport::self &&
        (layout.attention_ranks > 1 || layout.expert_ranks > 1 ||
         layout.mode != Config::Layout::Mode::colocated))
        fail("exchange.transport", "self is for one rank; this layout has more");
    if (c.exchange.mode == Config::Exchange::Mode::sized && c.exchange.bounded_tokens > 0)
        fail("exchange.bounded_tokens", "means nothing with exchange.mode: sized");

    if (c.engine.max_batch_tokens < c.engine.max_batch)
        fail("engine.max_batch_tokens",
             fmt::format("{} is less than engine.max_batch = {}; every running request needs one",
                         c.engine.max_batch_tokens, c.engine.max_batch));
    if (c.sampling.min_tokens > c.sampling.max_tokens)
        fail("sampling.min_tokens", fmt::format("{} is more than sampling.max_tokens = {}",
                                                c.sampling.min_tokens, c.sampling.max_tokens));
    if (!c.input.file.empty() && !c.input.prompt.empty())
        fail("input.prompt", "input.file is set too; give one of them");
}

Config load_config(const std::string& file, std::span<const std::string> overrides) {
    if (file.empty()) return make_config({}, "command line", overrides);
    return parse_config(read_file(file), file, overrides);
}

Config parse_config(std::string_view text, const std::string& name,
                    std::span<const std::string> overrides) {
    return make_config(parse_yaml(text, name), name, overrides);
}

void use_checkpoint(Config& config, const std::string& path,
                    std::span<const std::string> overrides) {
    for (const std::string& assignment : overrides)
        if (assignment.starts_with("model.path=") || assignment.starts_with("model.dummy="))
            throw Error(ErrorKind::usage, "--set {}: --model {} is given too; give one of them",
                        in_quotes(assignment), path);
    const Config defaults;
    config.model.path = path;
    config.model.dummy.clear();
    config.model.layers = defaults.model.layers;  // of a dummy
    config.model.dtype = defaults.model.dtype;
    config.model.seed = defaults.model.seed;
}

std::string effective_yaml(const Config& config) {
    Config copy = config;
    return to_yaml(config_fields(copy));
}

std::string describe_config_fields() {
    Config defaults;
    return describe(config_fields(defaults));
}

std::string result_fields(const Config& config) {
    Config copy = config;
    std::vector<Field> fields = config_fields(copy);
    // Sums of ranks are the same for one layout only.
    if (config.exchange.combine == Config::Exchange::Combine::reduced)
        for (Field& field : fields)
            if (field.key.starts_with("layout.")) field.changes = Changes::results;
    return to_yaml(fields, Changes::results);
}

Numerics numerics_of(const Config& config) {
    return {.fp8_activations = config.numerics.fp8_activations,
            .power_of_two_scales = false,
            .cache_dtype = config.numerics.cache_dtype == Config::NumericsSection::Cache::bf16
                               ? DType::bf16
                               : DType::f32,
            .tp_slices = config.numerics.tp_slices};
}

}  // namespace ferry
