// [0] The configuration of a run: one YAML file, one table of fields (config.cpp) from which
// parsing, checks, help and printing come.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/numerics.h"
#include "runtime/fields.h"
#include "runtime/request.h"

namespace ferry {

// The table in config.cpp says what each field means. Paths are relative to the working directory.
struct Config {
    enum class Switch { automatic, on, off };  // auto, true, false

    struct Model {
        std::string path;
        std::string dummy;
        int64_t layers = 0;
        enum class Weights {
            automatic,
            f32,
            bf16,
            fp8,
            int4,
            int4_layers,
            int4_all
        } dtype = Weights::automatic;
        uint64_t seed = 0;
        std::string tokenizer;
        std::string chat_template;
    } model;

    struct Checkpoint {
        enum class Verify { full, off } verify = Verify::full;
    } checkpoint;

    struct NumericsSection {
        bool fp8_activations = false;
        enum class Rounding { automatic, on, off, amx };  // Switch, or also summed as AMX does
        Rounding bf16_activations = Rounding::automatic;
        bool int8_activations = false;
        enum class Cache { f32, bf16 } cache_dtype = Cache::f32;
        int64_t tp_slices = 8;
    } numerics;

    struct Layout {
        enum class Mode { colocated, disaggregated, from_launcher } mode = Mode::colocated;
        int64_t attention_ranks = 0;
        int64_t expert_ranks = 0;
        int64_t tp_size = 0;
        std::string placement = "contiguous";  // or balanced, or the path of a .json
        std::string expert_load;
        int64_t redundant_experts = 0;
    } layout;

    struct Exchange {
        enum class Transport { automatic, mpi, ucx, nccl, self } transport = Transport::automatic;
        enum class Payload { f32, bf16, fp8 } dtype = Payload::f32;
        enum class Mode { automatic, bounded, sized } mode = Mode::automatic;
        int64_t bounded_tokens = 0;
        bool progress_thread = false;
        enum class Combine { exact, reduced } combine = Combine::exact;
    } exchange;

    struct Engine {
        enum class Device { cpu, cuda } device = Device::cpu;
        int64_t threads = 0;
        Switch compress_weights = Switch::automatic;
        int64_t max_batch = 32;
        int64_t max_batch_tokens = 512;
        int64_t max_prefill_chunk = 4096;
        int64_t max_context = 0;
        double cache_gib = 1;
        int64_t cache_pages = 0;
        double prefill_gib = 0.5;
        int64_t micro_batches = 1;
        int64_t draft_tokens = 0;
        double draft_acceptance = 0.4;
        enum class Drafter { prompt_lookup, mtp } drafter = Drafter::prompt_lookup;
        bool prefix_cache = true;
        bool cuda_graphs = true;
        double stall_timeout_s = 60;

        // The same for whoever waits: never is in 30 years.
        double patience_s() const { return stall_timeout_s > 0 ? stall_timeout_s : 1e9; }
    } engine;

    SamplingParams sampling;  // for requests that do not say otherwise

    struct Input {
        std::string file;
        std::vector<std::string> prompt;
    } input;

    struct Output {
        std::string dir;
        bool timings = true;
        double sync_interval_s = 1;
    } output;

    struct Log {
        enum class Level { debug, info, warn, error } level = Level::info;
        std::string file;
        std::string trace;
        std::string expert_load;
        std::string routing;
        enum class Progress { automatic, on, off } progress = Progress::automatic;
    } log;
};

// The table, bound to `config`.
std::vector<Field> config_fields(Config& config);
// Its sampling part, without the section's name: also the sampling fields of a request. Keys are
// prefix + name.
std::vector<Field> sampling_fields(SamplingParams& params, const std::string& prefix = {});

// Reads FILE (none when empty), then applies "section.key=value" overrides in order, then checks
// what no single field can. Throws Error(usage) "FILE:LINE: section.key: ...".
Config load_config(const std::string& file, std::span<const std::string> overrides);
// The same for a text; `name` stands for the file.
Config parse_config(std::string_view text, const std::string& name,
                    std::span<const std::string> overrides = {});

// Throws Error(usage) for fields that contradict each other; `origins` say where they were set,
// `name` stands for the rest.
void check_config(const Config& config, const FieldOrigins& origins, const std::string& name);

// Every field with its value, as YAML that load_config reads.
std::string effective_yaml(const Config& config);
// A checkpoint that the command line names stands instead of the file's model. Throws Error(usage)
// when `overrides` name one too.
void use_checkpoint(Config& config, const std::string& path,
                    std::span<const std::string> overrides);
// For `ferry config --help`.
std::string describe_config_fields();
// The fields that change results, as YAML: two runs with the same text, model files and input give
// the same output. Paths are left out, what they lead to is identified by its content.
std::string result_fields(const Config& config);

// What the layers take of it. `power_of_two_scales` comes from the checkpoint, not from here.
Numerics numerics_of(const Config& config);

}  // namespace ferry
