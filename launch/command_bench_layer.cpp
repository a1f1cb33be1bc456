// `ferry bench layer`: the stages of decode and prefill steps on one rank, beside the machine's
// read bandwidth and multiply-add peak.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <stdexcept>

#include "base/cores.h"
#include "base/device_cuda.h"
#include "launch/bench_arguments.h"
#include "launch/bench_report.h"
#include "launch/command_bench.h"
#include "launch/versions.h"
#include "runtime/config.h"
#include "runtime/loaded_engine.h"
#include "runtime/opened_model.h"
#include "runtime/run_trace.h"
#include "runtime/step_bench.h"

namespace ferry {
namespace {

struct Arguments : BenchModel {
    std::vector<int64_t> decode{1, 32}, prefill{512};
    int64_t context = 512;
    int warmup = 2, repetitions = 10;
};

std::vector<StepWorkload> workloads_of(const Arguments& arguments) {
    std::vector<StepWorkload> workloads;
    for (const int64_t sequences : arguments.decode)
        if (sequences > 0)
            workloads.push_back(
                {.prefill = false, .sequences = sequences, .tokens = arguments.context});
    for (const int64_t tokens : arguments.prefill)
        if (tokens > 0) workloads.push_back({.prefill = true, .sequences = 1, .tokens = tokens});
    if (workloads.empty())
        throw Error(ErrorKind::usage, "nothing to measure: --decode and --prefill are both 0");
    return workloads;
}

std::string name_of(const StepWorkload& workload) {
    return workload.prefill ? fmt::format("prefill {}", workload.tokens)
                            : fmt::format("decode {} at {}", workload.sequences, workload.tokens);
}

const std::vector<BenchColumn> kColumns{
    {.key = "workload", .heading = "step"},
    {.key = "stage", .heading = "stage"},
    {.key = "layers", .heading = "layers"},
    {.key = "best_us", .heading = "best us", .num_digits = 0},
    {.key = "median_us", .heading = "median us", .num_digits = 0},
    {.key = "of_step", .heading = "%", .num_digits = 0, .scale = 100},
    {.key = "bytes", .heading = "MB", .num_digits = 1, .scale = 1e-6},
    {.key = "flops", .heading = "MFLOP", .num_digits = 0, .scale = 1e-6},
    {.key = "GBps", .heading = "GB/s", .num_digits = 1},
    {.key = "of_read", .heading = "% read", .num_digits = 0, .scale = 100},
    {.key = "GFLOPps", .heading = "GFLOP/s", .num_digits = 1},
    {.key = "of_peak", .heading = "% peak", .num_digits = 0, .scale = 100},
    {.key = "of_bound", .heading = "% bound", .num_digits = 0, .scale = 100},
    {.key = "read_GBps", .heading = "read loop", .num_digits = 1},
    {.key = "peak_GFLOPps", .heading = "FMA peak", .num_digits = 1},
    {.key = "check", .heading = "bits"}};

void add_rows(const StepTimes& times, BenchReport& report) {
    const Rates& rates = times.rates;
    const double step_s = times.stages.back().best_s;
    for (const StepStage& stage : times.stages) {
        if (stage.best_s <= 0 || stage.num_layers == 0) continue;
        const double s = stage.best_s;
        report.add_row({name_of(times.workload), stage.name, stage.num_layers, s * 1e6,
                        stage.median_s * 1e6, s / step_s, stage.bytes, stage.flops,
                        stage.bytes / s * 1e-9, stage.bytes / s / rates.read_bytes_per_s,
                        stage.flops / s * 1e-9, stage.flops / s / rates.peak_flops_per_s,
                        rates.bound_s(stage.bytes, stage.flops) / s, rates.read_bytes_per_s * 1e-9,
                        rates.peak_flops_per_s * 1e-9,
                        std::string(times.same_bits ? "same" : "DIFFER")});
    }
}

void bench_layer(const Arguments& arguments) {
    const Config config = config_of(arguments);
    const std::vector<StepWorkload> workloads = workloads_of(arguments);
    OpenedModel model = open_model(config);
    for (const StepWorkload& workload : workloads)
        if (workload.last_position() >= model.source->config().max_positions)
            throw Error(ErrorKind::usage, "{}: the model has {} positions", name_of(workload),
                        model.source->config().max_positions);
    const int threads = threads_of(config, static_cast<int>(allowed_cores().size()));
    check_supported(config);
    const bool gpu = config.engine.device == Config::Engine::Device::cuda;
    StepBench bench(*model.source, model.numerics,
                    gpu ? make_cuda_kernels(0) : make_cpu_kernels(threads), workloads);

    BenchReport report("layer", kColumns);
    report.add_parameter("model", model.name);
    report.add_parameter("layers", model.source->config().n_layers);
    report.add_parameter("weights GB", static_cast<double>(bench.weight_bytes()) * 1e-9);
    report.add_parameter("cache", std::string(to_string(model.numerics.cache_dtype)));
    if (gpu)
        report.add_parameter("device", cuda_device(0).info().name);
    else
        report.add_parameter("threads", int64_t{threads});
    report.add_parameter("warm-up", int64_t{arguments.warmup});
    report.add_parameter("repetitions", int64_t{arguments.repetitions});
    std::optional<World> world;  // of one rank, which nothing but a trace needs
    std::optional<RunTrace> run_trace;
    if (!config.log.trace.empty()) {
        world.emplace(nullptr, nullptr);
        if (world->size() > 1)
            throw Error(ErrorKind::usage,
                        "log.trace: bench layer runs on one rank, the launcher started {}",
                        world->size());
        run_trace.emplace(*world, true);
    }
    bool same_bits = true;
    for (const StepWorkload& workload : workloads) {
        const StepTimes times = bench.run(workload, arguments.warmup, arguments.repetitions);
        if (times.experts_per_layer > 0)
            report.add_parameter(name_of(workload) + ", experts read per layer",
                                 times.experts_per_layer);
        same_bits &= times.same_bits;
        add_rows(times, report);
    }
    if (run_trace) {
        run_trace->finish();
        run_trace->write(*world, bench.layout(), config.log.trace);
    }
    std::string versions = describe_versions();
    std::replace(versions.begin(), versions.end(), '\n', ';');
    report.add_parameter("versions", versions);
    report.publish(arguments.json, arguments.csv);
    if (!same_bits) throw std::runtime_error("a step's bits depend on what was computed beside it");
}

}  // namespace

void add_bench_layer(CLI::App& bench) {
    CLI::App* command = bench.add_subcommand(
        "layer",
        "Stages of decode and prefill steps on one rank: time, bytes and FLOPs as fractions of "
        "the machine's read bandwidth and multiply-add peak, or of a GPU's copy bandwidth and "
        "matrix product (best repetitions; --set engine.device=cuda). On a CPU a step's bits must "
        "not depend on what is computed beside it");
    const auto arguments = std::make_shared<Arguments>();
    add_model_options(*command, *arguments);
    command->add_option("--decode", arguments->decode, "Sequences of a decode step; 0: none")
        ->delimiter(',')
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    command->add_option("--context", arguments->context, "Tokens that these have already")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--prefill", arguments->prefill, "Tokens of a prompt; 0: none")
        ->delimiter(',')
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    command->add_option("--warmup", arguments->warmup, "Steps before timing")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    command->add_option("--repetitions", arguments->repetitions, "Steps to time")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str();
    command->callback([arguments] { bench_layer(*arguments); });
}

}  // namespace ferry
