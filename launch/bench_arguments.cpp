#include "launch/bench_arguments.h"

#include <fmt/core.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "launch/command_line.h"
#include "launch/end_job.h"
#include "launch/keeper.h"
#include "launch/text_output.h"
#include "launch/versions.h"
#include "runtime/stop_signal.h"

namespace ferry {
using Json = nlohmann::ordered_json;

void add_checkpoint_options(Command& command, BenchModel& arguments) {
    command.option("CONFIG", arguments.config_file, "YAML (see ferry config --help)");
    command.option("--model", arguments.model, "Checkpoint");
    command.option("--json", arguments.json, "Write JSON to this file; - : to stdout");
    command.option("--csv", arguments.csv, "Write CSV to this file; - : to stdout");
    command.option("--set", arguments.overrides, "section.key=value, after the file")
        .one_each_time();
}

void add_model_options(Command& command, BenchModel& arguments) {
    add_checkpoint_options(command, arguments);
    command.option("--shape", arguments.shape,
                   "configs/models/*.yaml, with dummy weights instead of a checkpoint");
}

void add_workload_options(Command& command, BenchArguments& arguments) {
    command
        .option("--requests", arguments.num_requests,
                "How many; default: 32, or the lines of --lengths")
        .positive();
    command
        .option("--input", arguments.input,
                "Prompt tokens: 128, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:MAX")
        .show_default();
    command.option("--output", arguments.output, "Generated tokens, likewise").show_default();
    command.option("--lengths", arguments.lengths_file,
                   "JSONL with prompt_tokens (a number or a list) and max_tokens, or input "
                   "and output, instead of --input and --output");
    command
        .option("--prefix-share", arguments.prefix_share,
                "Share of every prompt that all prompts have in common")
        .in_range(0.0, 1.0)
        .show_default();
    command
        .option("--arrivals", arguments.arrivals,
                "offline: all at the start; poisson, fixed: at --rate, whether or not "
                "earlier ones are done")
        .one_of({"offline", "poisson", "fixed"})
        .show_default();
    command.option("--rate", arguments.rate, "Requests per second").positive();
    command.option("--seed", arguments.seed, "Of lengths, tokens and arrivals").show_default();
    command.option("--warmup", arguments.warmup,
                   "Requests before timing; default: as many as run at once");
    command.option("--repetitions", arguments.repetitions, "Of the whole workload")
        .in_range(1, 1000)
        .show_default();
    command.option("--status-dir", arguments.status_dir,
                   "Existing folder for the status file that ferry top shows");
}

void add_target_options(Command& command, BenchArguments& arguments) {
    command
        .option("--slo-ttft-ms", arguments.targets.ttft_ms,
                "A request is good when its first token came within this time")
        .positive();
    command
        .option("--slo-tpot-ms", arguments.targets.tpot_ms,
                "and later ones took no more than this on average")
        .positive();
}

Config config_of(const BenchModel& arguments) {
    std::vector<std::string> overrides = arguments.overrides;
    if (!arguments.shape.empty())
        overrides.insert(overrides.begin(), "model.dummy=" + arguments.shape);
    Config config = load_config(arguments.config_file, overrides);
    if (!arguments.model.empty() && !arguments.shape.empty())
        throw Error(ErrorKind::usage, "--shape {}: --model {} is given too; give one of them",
                    arguments.shape, arguments.model);
    if (!arguments.model.empty()) use_checkpoint(config, arguments.model, arguments.overrides);
    if (!arguments.shape.empty()) config.model.path.clear();
    check_config(config, {}, "command line");
    return config;
}

WorkloadOptions workload_options(const BenchArguments& arguments, int64_t vocab_size) {
    WorkloadOptions options{.num_requests = arguments.num_requests,
                            .prefix_share = arguments.prefix_share,
                            .vocab_size = vocab_size,
                            .rate = arguments.rate,
                            .seed = arguments.seed};
    if (!arguments.lengths_file.empty())
        options.lengths = read_lengths(arguments.lengths_file);
    else if (options.num_requests == 0)
        options.num_requests = 32;
    options.input = parse_length(arguments.input, "--input");
    options.output = parse_length(arguments.output, "--output");
    const bool open_loop = arguments.arrivals != "offline";
    if (open_loop && arguments.rate <= 0)
        throw Error(ErrorKind::usage, "--arrivals {}: needs --rate", arguments.arrivals);
    if (!open_loop && arguments.rate > 0)
        throw Error(ErrorKind::usage, "--rate: needs --arrivals poisson or fixed");
    if (open_loop)
        options.arrivals = arguments.arrivals == "poisson" ? WorkloadOptions::Arrivals::poisson
                                                           : WorkloadOptions::Arrivals::fixed;
    return options;
}

void check_outputs(const BenchModel& arguments, const Config& config) {
    for (const std::string& path : {arguments.json, arguments.csv, config.log.trace})
        check_writable(path);
}

BenchJob::BenchJob(World& all, const BenchArguments& arguments)
    : world(all), config(config_of(arguments)) {
    init_log({.level = static_cast<LogLevel>(config.log.level), .file = config.log.file});
    if (world.size() > 1) set_log_rank(world.rank(), world.host());
    check_supported(config);
    if (world.rank() == 0) check_outputs(arguments, config);
    if (world.rank() == 0 && !(config.log.expert_load + config.log.routing).empty())
        log_warn("log.expert_load and log.routing are written by ferry generate only");
    check_same_everywhere(world, "build", describe_versions());
    check_same_everywhere(world, "executable", build_id());
    check_same_everywhere(world, "configuration", effective_yaml(config));
    if (world.size() > 1) {
        WatchdogOptions options;
        options.stall_timeout_s = config.engine.patience_s();
        watchdog.emplace(world, options);
    }
    model = open_model(config);
    if (world.rank() == 0)
        for (const std::string& warning : model.warnings) log_warn("{}", warning);
}

void run_bench_job(const std::function<void(World& world)>& body) {
    go_on_under_keeper();
    install_stop_signals();
    bool stopped = false;
    {
        World world = start_world();
        try {
            body(world);
            stopped = world.all_max(stop_requested() ? 1 : 0) > 0;
            if (stopped)
                tell_stop(world, Error(ErrorKind::requeue,
                                       "stopped; what was finished before is reported"));
        } catch (const Error& error) {
            if (world.size() == 1) throw;
            end_job(world, error);
        }
    }
    if (stopped) std::exit(exit_code(ErrorKind::requeue));
}

void describe_numerics(const Config& config, const OpenedModel& model, BenchReport& report) {
    report.add_parameter("cache", std::string(to_string(model.numerics.cache_dtype)));
    if (config.engine.device == Config::Engine::Device::cuda) return;
    const CpuOptions& cpu = model.cpu;
    std::string rounding = cpu.bf16_activations ? "yes" : "no";
    if (cpu.amx_sums) rounding = uses_amx() ? "by AMX" : "as AMX, without it";
    report.add_parameter("bf16 activations", rounding);
    if (cpu.int8_activations) report.add_parameter("int8 activations", "of int4 weights");
    const bool automatic = config.engine.compress_weights == Config::Switch::automatic;
    report.add_parameter("compressed weights", std::string(!cpu.compress_weights ? "no"
                                                           : automatic ? "where they can be"
                                                                       : "yes"));
}

void describe_machine(BenchReport& report) {
    const MachineInfo machine = machine_info();
    report.add_section("time", Json(time_text()).dump());
    report.add_parameter("machine", fmt::format("{} with {} cores of {}, {}", machine.host,
                                                machine.cores, machine.cpu, machine.kernel));
}

void describe_bench(const BenchArguments& arguments, BenchJob& job, const WorkloadOptions& options,
                    size_t num_requests, BenchReport& report) {
    report.add_section("format", "1");
    report.add_section("versions", versions_json());
    report.add_section("hosts", hosts_json(job.world));
    report.add_section("config", config_json(job.config));
    report.add_parameter("model", job.model.name);
    report.add_parameter("layers", job.model.source->config().n_layers);
    report.add_parameter("weights MB", static_cast<double>(job.model.weight_bytes) * 1e-6);
    report.add_parameter("ranks of the job", int64_t{job.world.size()});
    report.add_parameter("repetitions", int64_t{arguments.repetitions});
    describe_numerics(job.config, job.model, report);
    report.add_parameter("ferry", list_versions()[0].second);
    describe_machine(report);
    if (num_requests == 0) return;
    const bool from_file = !options.lengths.empty();
    const std::string input = from_file ? arguments.lengths_file : to_string(options.input),
                      output = from_file ? arguments.lengths_file : to_string(options.output);
    report.add_section("workload", Json{{"requests", num_requests},
                                        {"input", input},
                                        {"output", output},
                                        {"arrivals", arguments.arrivals},
                                        {"rate", arguments.rate},
                                        {"prefix_share", arguments.prefix_share},
                                        {"seed", arguments.seed},
                                        {"warmup_requests", arguments.warmup},
                                        {"repetitions", arguments.repetitions},
                                        {"slo_ttft_ms", arguments.targets.ttft_ms},
                                        {"slo_tpot_ms", arguments.targets.tpot_ms}}
                                       .dump(-1, ' ', false, Json::error_handler_t::replace));
    report.add_parameter("requests", static_cast<int64_t>(num_requests));
    report.add_parameter("input tokens", input);
    report.add_parameter("output tokens", output);
    report.add_parameter("arrivals",
                         arguments.rate > 0
                             ? fmt::format("{} at {}/s", arguments.arrivals, arguments.rate)
                             : "all at the start");
}

}  // namespace ferry
