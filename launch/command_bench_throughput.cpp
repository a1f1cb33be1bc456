// `ferry bench throughput`: tokens per second and latencies of a workload, swept over settings.
#include <fmt/core.h>

#include <algorithm>
#include <memory>

#include "launch/bench_arguments.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "runtime/run_trace.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

struct Arguments : BenchArguments {
    ThroughputSweep sweep;
    std::vector<std::string> layouts;
};

// Collective: every rank runs its part, rank 0 reports.
void bench_throughput_on(World& world, const Arguments& arguments) {
    BenchJob job(world, arguments);
    ThroughputSweep sweep = arguments.sweep;
    for (const std::string& text : arguments.layouts)
        sweep.layouts.push_back(parse_layout_choice(text, "--layout"));
    if (sweep.layouts.empty()) sweep.layouts.push_back(layout_choice_of(job.config, world.size()));
    const WorkloadOptions options =
        workload_options(arguments, job.model.source->config().vocab_size);
    const std::vector<WorkloadRequest> workload = make_workload(options);

    ThroughputReport report(arguments.targets, job.model.source->config(),
                            job.config.engine.device == Config::Engine::Device::cuda);
    describe_bench(arguments, job, options, workload.size(), report.report());
    ThroughputRunner runner(world, job.watchdog ? &*job.watchdog : nullptr, job.config, job.model,
                            arguments.status_dir);
    std::vector<ThroughputCase> cases = sweep.cases(job.config);
    bool any_fits = false;
    for (ThroughputCase& each : cases) {
        each.rate = arguments.rate;
        if (const std::string& trace = job.config.log.trace; !trace.empty())
            each.trace = cases.size() > 1 ? trace_path_of(trace, each.name()) : trace;
        const auto layout =
            std::find_if(sweep.layouts.begin(), sweep.layouts.end(),
                         [&](const LayoutChoice& choice) { return choice.text == each.layout; });
        const ThroughputOutcome outcome =
            runner.run(each, *layout, workload,
                       {.num_repetitions = arguments.repetitions,
                        .num_warmup_requests = arguments.warmup,
                        .seed = arguments.seed,
                        .stop_requested = [] { return stop_requested(); }});
        if (world.rank() == 0) report.add(outcome);
        any_fits = any_fits || outcome.about.skipped.empty();
        if (world.all_max(stop_requested() ? 1 : 0) > 0) break;
    }
    if (world.rank() == 0) {
        report.report().publish(arguments.json, arguments.csv);
        if (arguments.json != "-" && arguments.csv != "-") fmt::print("{}", report.notes());
    }
    if (world.all_max(any_fits || stop_requested() ? 1 : 0) == 0)
        throw Error(ErrorKind::usage, "every layout needs more ranks than the {} of this job",
                    world.size());
    if (world.all_max(report.all_valid() ? 0 : 1) > 0)
        throw Error(ErrorKind::communication,
                    "the results do not hold: see the validity lines of the report");
}

}  // namespace

void add_bench_throughput(Command& bench) {
    Command command = bench.add_command(
        "throughput",
        "Tokens per second, latencies, phases and balance of a workload, on one rank or under "
        "mpirun or srun. Lists are swept within the job: a layout that needs fewer ranks runs on "
        "the first of them, one that needs more is skipped. Prompts are random tokens, requests "
        "generate exactly the tokens asked for. With Ctrl-C the finished cases are reported; the "
        "exit "
        "code is 75 then, or mpirun's own, which gives 75 after a SIGUSR1");
    const auto arguments = std::make_shared<Arguments>();
    const auto list = [&](const char* name, auto& values, const char* help) {
        return command.option(name, values, help).comma_separated();
    };
    add_model_options(command, *arguments);
    list("--layout", arguments->layouts,
         "2:2 (attention:expert ranks), 2:2:2 (and TP size), colocated, colocated:RANKS[:TP]");
    list("--batch", arguments->sweep.batches, "engine.max_batch").positive();
    list("--micro-batches", arguments->sweep.micro_batches, "engine.micro_batches").in_range(1, 4);
    list("--mode", arguments->sweep.modes, "exchange.mode").one_of({"auto", "bounded", "sized"});
    list("--transport", arguments->sweep.transports, "exchange.transport");
    list("--threads", arguments->sweep.threads, "engine.threads; 0: the machine's share")
        .in_range(0, 4096);
    add_workload_options(command, *arguments);
    add_target_options(command, *arguments);
    command.on_run([arguments] {
        run_bench_job([&](World& world) { bench_throughput_on(world, *arguments); });
    });
}

}  // namespace ferry
