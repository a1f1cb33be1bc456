// `ferry bench scaling`: the same workload, or one that grows with the ranks, over a list of
// layouts inside one job.
#include <fmt/format.h>

#include <memory>

#include "launch/bench_arguments.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

struct Arguments : BenchArguments {
    std::vector<std::string> layouts, kinds{"strong", "weak"};
};

const std::vector<BenchColumn> kColumns{
    {.key = "kind", .heading = "scaling"},
    {.key = "layout", .heading = "layout"},
    {.key = "ranks", .heading = "ranks"},
    {.key = "nodes", .heading = "nodes"},
    {.key = "requests", .heading = "requests"},
    {.key = "skipped", .heading = ""},
    {.key = "wall_s", .heading = "s", .num_digits = 2},
    {.key = "spread", .heading = "spread %", .num_digits = 1, .scale = 100},
    {.key = "output_tokens_per_s", .heading = "out tok/s", .num_digits = 1},
    {.key = "output_tokens_per_s_per_rank", .heading = "/rank", .num_digits = 1},
    {.key = "speedup", .heading = "speed-up", .num_digits = 2},
    {.key = "efficiency", .heading = "efficiency %", .num_digits = 0, .scale = 100},
    {.key = "valid", .heading = "valid"}};

// 1, 2, 4, … ranks and all of them.
std::vector<std::string> default_layouts(int world_size) {
    std::vector<std::string> layouts;
    for (int ranks = 1; ranks < world_size; ranks *= 2)
        layouts.push_back(fmt::format("colocated:{}", ranks));
    layouts.push_back(fmt::format("colocated:{}", world_size));
    return layouts;
}

class Scaling {
  public:
    Scaling(BenchJob& job, const Arguments& arguments)
        : job_(job),
          arguments_(arguments),
          runner_(job.world, job.watchdog ? &*job.watchdog : nullptr, job.config, job.model,
                  arguments.status_dir),
          report_("scaling", kColumns) {
        for (const std::string& text :
             arguments.layouts.empty() ? default_layouts(job.world.size()) : arguments.layouts)
            layouts_.push_back(parse_layout_choice(text, "--layout"));
    }

    void run() {
        const WorkloadOptions options =
            workload_options(arguments_, job_.model.source->config().vocab_size);
        describe_bench(arguments_, job_, options, make_workload(options).size(), report_);
        for (const std::string& kind : arguments_.kinds) {
            first_rate_ = 0;
            for (const LayoutChoice& layout : layouts_)
                if (!stopped()) run_one(kind, layout, options);
        }
        if (job_.world.rank() == 0) report_.publish(arguments_.json, arguments_.csv);
        if (job_.world.all_max(all_valid_ ? 0 : 1) > 0)
            throw Error(ErrorKind::communication,
                        "the results do not hold: ferry bench throughput says why");
    }

  private:
    bool stopped() { return job_.world.all_max(stop_requested() ? 1 : 0) > 0; }

    // Weak scaling: as many requests per rank as the first layout has.
    void run_one(const std::string& kind, const LayoutChoice& layout, WorkloadOptions options) {
        const int ranks = layout.num_ranks(job_.world.size());
        const int first_ranks = layouts_[0].num_ranks(job_.world.size());
        if (options.num_requests == 0)
            options.num_requests = static_cast<int64_t>(options.lengths.size());
        if (kind == "weak") options.num_requests = options.num_requests * ranks / first_ranks;
        ThroughputSweep sweep;
        sweep.layouts = {layout};
        const ThroughputOutcome outcome =
            runner_.run(sweep.cases(job_.config)[0], layout, make_workload(options),
                        {.num_repetitions = arguments_.repetitions,
                         .num_warmup_requests = arguments_.warmup,
                         .seed = arguments_.seed,
                         .stop_requested = [] { return stop_requested(); }});
        if (job_.world.rank() != 0) return;
        const ThroughputFigures figures = figures_of(outcome, job_.model.source->config());
        all_valid_ &= figures.results_hold;
        if (first_rate_ == 0) first_rate_ = figures.output_tokens_per_s;
        const double speedup = first_rate_ > 0 ? figures.output_tokens_per_s / first_rate_ : 0;
        report_.add_row({kind, layout.text, int64_t{ranks}, int64_t{outcome.about.num_nodes},
                         options.num_requests, outcome.about.skipped, figures.wall_s,
                         figures.spread, figures.output_tokens_per_s,
                         figures.output_tokens_per_s / ranks, speedup,
                         speedup * first_ranks / ranks, figures.word});
    }

    BenchJob& job_;
    const Arguments& arguments_;
    ThroughputRunner runner_;
    BenchReport report_;
    std::vector<LayoutChoice> layouts_;
    double first_rate_ = 0;  // of the first layout that ran
    bool all_valid_ = true;
};

}  // namespace

void add_bench_scaling(Command& bench) {
    Command command = bench.add_command(
        "scaling",
        "Throughput over a list of layouts inside one job (mpirun, srun), each on the first ranks "
        "of it: strong scaling (the same requests) and weak (as many per rank), with speed-up and "
        "efficiency against the first layout");
    const auto arguments = std::make_shared<Arguments>();
    add_model_options(command, *arguments);
    command
        .option("--layout", arguments->layouts,
                "2:2 (attention:expert ranks), 2:2:2 (and TP size), colocated:RANKS[:TP]; "
                "default: colocated on 1, 2, 4, ... ranks")
        .comma_separated();
    command.option("--kind", arguments->kinds, "strong, weak")
        .comma_separated()
        .one_of({"strong", "weak"})
        .show_default();
    add_workload_options(command, *arguments);
    command.on_run([arguments] {
        run_bench_job([&](World& world) {
            BenchJob job(world, *arguments);
            Scaling(job, *arguments).run();
        });
    });
}

}  // namespace ferry
