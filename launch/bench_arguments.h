// Options that benchmarks of models share: model and output; those of whole runs, workload too.
#pragma once
#include <string>
#include <vector>

#include "launch/throughput_run.h"

namespace ferry {

class Command;  // command_line.h

// What is measured, and where the figures go.
struct BenchModel {
    std::string config_file, model, shape, json, csv;
    std::vector<std::string> overrides;
};

struct BenchArguments : BenchModel {
    std::string status_dir;
    int64_t num_requests = 0;
    std::string input = "128", output = "32", lengths_file, arrivals = "offline";
    double prefix_share = 0, rate = 0;
    uint64_t seed = 1;
    int64_t warmup = -1;
    int repetitions = 3;
    ServiceTargets targets;
};

// CONFIG, --model, --set, --json, --csv.
void add_checkpoint_options(Command& command, BenchModel& arguments);
// The same and --shape.
void add_model_options(Command& command, BenchModel& arguments);
// Requests, lengths, arrivals, repetitions, --status-dir.
void add_workload_options(Command& command, BenchArguments& arguments);
// Times within which a request is good.
void add_target_options(Command& command, BenchArguments& arguments);

// Throws Error(input) when what is written at the end could not be: the figures, the trace.
void check_outputs(const BenchModel& arguments, const Config& config);
// Throws Error(usage).
Config config_of(const BenchModel& arguments);
WorkloadOptions workload_options(const BenchArguments& arguments, int64_t vocab_size);

// A job of one or more ranks with its log, checks and watchdog.
struct BenchJob {
    BenchJob(World& world, const BenchArguments& arguments);

    World& world;
    Config config;
    std::optional<Watchdog> watchdog;
    OpenedModel model;
};
// Runs `body` on every rank; an error ends the whole job as `ferry generate` does, and after a
// signal the end is Error(requeue).
void run_bench_job(const std::function<void(World& world)>& body);

// How the latent cache and CPU kernels hold and round what they compute with.
void describe_numerics(const Config& config, const OpenedModel& model, BenchReport& report);

// When, on what machine.
void describe_machine(BenchReport& report);

// Sections and parameters that say what was measured, with what, where. Collective.
void describe_bench(const BenchArguments& arguments, BenchJob& job, const WorkloadOptions& options,
                    size_t num_requests, BenchReport& report);

}  // namespace ferry
