// `ferry bench layer`: the stages of decode and prefill steps on one rank, beside the machine's
// read bandwidth and multiply-add peak.
#include <fmt/core.h>

#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>

#include "base/cores.h"
#include "base/device_cuda.h"
#include "base/log.h"
#include "comm/launcher.h"
#include "launch/bench_arguments.h"
#include "launch/bench_report.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "launch/throughput_run.h"
#include "launch/versions.h"
#include "runtime/config.h"
#include "runtime/expert_share_bench.h"
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
    int expert_ranks = 0;
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

void add_rows(const std::string& name, const StepTimes& times, double step_s, BenchReport& report) {
    const Rates& rates = times.rates;
    for (const StepStage& stage : times.stages) {
        if (stage.best_s <= 0 || stage.num_layers == 0) continue;
        const double s = stage.best_s;
        report.add_row({name, stage.name, stage.num_layers, s * 1e6, stage.median_s * 1e6,
                        s / step_s, stage.bytes, stage.flops, stage.bytes / s * 1e-9,
                        stage.bytes / s / rates.read_bytes_per_s, stage.flops / s * 1e-9,
                        stage.flops / s / rates.peak_flops_per_s,
                        rates.bound_s(stage.bytes, stage.flops) / s, rates.read_bytes_per_s * 1e-9,
                        rates.peak_flops_per_s * 1e-9,
                        std::string(times.same_bits ? "same" : "DIFFER")});
    }
}

// The slowest of the virtual ranks sets the pace of the layer: its row, and the spread of all.
bool add_expert_ranks(const Arguments& arguments, OpenedModel& model,
                      std::unique_ptr<Kernels> kernels, const std::vector<StepTimes>& times,
                      BenchReport& report) {
    std::vector<int64_t> tokens;
    for (const StepTimes& step : times) tokens.push_back(step.workload.num_rows());
    const auto shares = bench_expert_shares(*model.source, model.numerics, *kernels, tokens,
                                            {.num_ranks = arguments.expert_ranks,
                                             .num_warmups = arguments.warmup,
                                             .num_repetitions = arguments.repetitions});
    bool same_bits = true;
    for (size_t i = 0; i < times.size(); ++i) {
        const auto [fastest, slowest] = std::ranges::minmax(shares[i], {}, &ExpertShare::best_s);
        const auto [fewest, most] = std::ranges::minmax(shares[i], {}, &ExpertShare::num_rows);
        StepTimes share{.workload = times[i].workload, .stages = {}, .rates = times[i].rates};
        for (const ExpertShare& each : shares[i]) share.same_bits &= each.same_bits;
        share.stages = {{.name = "experts",
                         .num_layers = 1,
                         .best_s = slowest.best_s,
                         .median_s = slowest.median_s,
                         .bytes = slowest.bytes,
                         .flops = slowest.flops}};
        const std::string name =
            fmt::format("{}, 1 of {} expert ranks", name_of(share.workload), shares[i].size());
        add_rows(name, share, times[i].stages.back().best_s, report);
        report.add_parameter(
            name, fmt::format("{} to {} experts, {} to {} rows, {:.0f} to {:.0f} us",
                              shares[i].back().num_experts, shares[i].front().num_experts,
                              fewest.num_rows, most.num_rows, fastest.best_s * 1e6,
                              slowest.best_s * 1e6));
        same_bits &= share.same_bits;
    }
    return same_bits;
}

void check_against(const ModelConfig& shape, const Arguments& arguments,
                   const std::vector<StepWorkload>& workloads) {
    for (const StepWorkload& workload : workloads)
        if (workload.last_position() >= shape.max_positions)
            throw Error(ErrorKind::usage, "{}: the model has {} positions", name_of(workload),
                        shape.max_positions);
    const int64_t num_experts = shape.n_layers > shape.n_dense_layers ? shape.n_routed_experts : 0;
    if (arguments.expert_ranks > num_experts)
        throw Error(ErrorKind::usage,
                    "--expert-ranks: {} ranks cannot share the {} experts of a layer",
                    arguments.expert_ranks, num_experts);
}

// Times every workload; the trace, when one is asked for, holds them all.
std::vector<StepTimes> measure(StepBench& bench, const Arguments& arguments,
                               const std::vector<StepWorkload>& workloads,
                               const std::string& trace_path) {
    std::optional<World> world;  // of one rank, which nothing but a trace needs
    std::optional<RunTrace> run_trace;
    if (!trace_path.empty()) {
        world.emplace(nullptr, nullptr);
        run_trace.emplace(*world, true);
    }
    std::vector<StepTimes> all;
    for (const StepWorkload& workload : workloads)
        all.push_back(bench.run(workload, arguments.warmup, arguments.repetitions));
    if (run_trace) {
        run_trace->finish();
        run_trace->write(*world, bench.layout(), trace_path);
    }
    return all;
}

void bench_layer(const Arguments& arguments) {
    refuse_several_tasks(own_environment, "bench layer");
    const Config config = config_of(arguments);
    init_log({.level = static_cast<LogLevel>(config.log.level), .file = config.log.file});
    check_outputs(arguments, config);
    check_supported(config);
    const std::vector<StepWorkload> workloads = workloads_of(arguments);
    OpenedModel model = open_model(config);
    for (const std::string& warning : model.warnings) log_warn("{}", warning);
    check_against(model.source->config(), arguments, workloads);
    const int threads = threads_of(config, usable_cores(static_cast<int>(allowed_cores().size())));
    const bool gpu = config.engine.device == Config::Engine::Device::cuda;
    std::atomic<bool> incompressible = false;  // as LoadedEngine has it
    if (config.engine.compress_weights == Config::Switch::automatic)
        model.cpu.incompressible = &incompressible;
    const auto make_kernels = [&] {
        return gpu ? make_cuda_kernels(0) : make_cpu_kernels(threads, model.cpu);
    };
    const auto make_bench = [&] {
        return std::make_unique<StepBench>(*model.source, model.numerics, make_kernels(),
                                           workloads);
    };
    std::unique_ptr<StepBench> bench = make_bench();
    if (incompressible) {
        model.cpu.compress_weights = false;
        bench.reset();
        bench = make_bench();
    }

    BenchReport report("layer", kColumns);
    report.add_parameter("model", model.name);
    report.add_parameter("layers", model.source->config().n_layers);
    report.add_parameter("weights GB", static_cast<double>(bench->weight_bytes()) * 1e-9);
    if (gpu) {
        report.add_parameter("device", cuda_device(0).info().name);
    } else {
        report.add_parameter("threads", int64_t{threads});
    }
    describe_numerics(config, model, report);
    report.add_parameter("warm-up", int64_t{arguments.warmup});
    report.add_parameter("repetitions", int64_t{arguments.repetitions});

    bool same_bits = true;
    const std::vector<StepTimes> all = measure(*bench, arguments, workloads, config.log.trace);
    for (const StepTimes& times : all) {
        const std::string name = name_of(times.workload);
        if (times.experts_per_layer > 0)
            report.add_parameter(name + ", experts read per layer", times.experts_per_layer);
        same_bits &= times.same_bits;
        add_rows(name, times, times.stages.back().best_s, report);
    }
    bench.reset();  // the memory of the whole model
    if (arguments.expert_ranks > 0)
        same_bits &= add_expert_ranks(arguments, model, make_kernels(), all, report);
    describe_machine(report);
    report.add_section("config", config_json(config));
    std::string versions = describe_versions();
    std::replace(versions.begin(), versions.end(), '\n', ';');
    report.add_parameter("versions", versions);
    report.publish(arguments.json, arguments.csv);
    if (!same_bits) throw std::runtime_error("a step's bits depend on what was computed beside it");
}

}  // namespace

void add_bench_layer(Command& bench) {
    Command command = bench.add_command(
        "layer",
        "Stages of decode and prefill steps on one rank: time, bytes and FLOPs as fractions of "
        "the machine's read bandwidth and multiply-add peak, or of a GPU's copy bandwidth and "
        "matrix product (best repetitions; --set engine.device=cuda). On a CPU a step's bits must "
        "not depend on what is computed beside it");
    const auto arguments = std::make_shared<Arguments>();
    add_model_options(command, *arguments);
    command.option("--decode", arguments->decode, "Sequences of a decode step; 0: none")
        .comma_separated()
        .in_range(0, 4096)
        .show_default();
    command.option("--context", arguments->context, "Tokens that these have already")
        .in_range(1, 1 << 20)
        .show_default();
    command.option("--prefill", arguments->prefill, "Tokens of a prompt; 0: none")
        .comma_separated()
        .in_range(0, 1 << 20)
        .show_default();
    command
        .option("--expert-ranks", arguments->expert_ranks,
                "Also time the experts of one MoE layer as so many ranks share them, each on "
                "the rows that as many attention ranks send it: one after the other, the "
                "slowest is shown; 0: not")
        .in_range(0, 4096)
        .show_default();
    command.option("--warmup", arguments->warmup, "Steps before timing")
        .in_range(1, 1000)
        .show_default();
    command.option("--repetitions", arguments->repetitions, "Steps to time")
        .in_range(1, 100000)
        .show_default();
    command.on_run([arguments] { bench_layer(*arguments); });
}

}  // namespace ferry
