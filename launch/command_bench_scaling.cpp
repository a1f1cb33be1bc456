// `ferry bench scaling`: the same workload, or one that grows with the ranks, over a list of
// layouts: inside one job, or each as a job of its own that is started through the launcher.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "comm/launcher.h"
#include "launch/bench_arguments.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "launch/launched_job.h"
#include "runtime/input_file.h"
#include "runtime/run_trace.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

struct Arguments : BenchArguments {
    std::vector<std::string> layouts, kinds{"strong", "weak"};
    std::string launcher;
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

// One line of the table before it is compared with the first.
struct Point {
    std::string kind;
    LayoutChoice layout;
    int num_ranks = 1;
    int64_t num_requests = 0;

    std::string name() const { return kind + " " + layout.text; }
};

// All of them; weak scaling: as many requests per rank as the first layout has.
std::vector<Point> make_points(const std::vector<std::string>& kinds,
                               const std::vector<LayoutChoice>& layouts, int world_size,
                               const WorkloadOptions& options) {
    const int64_t num_requests = options.num_requests > 0
                                     ? options.num_requests
                                     : static_cast<int64_t>(options.lengths.size());
    const int first_ranks = layouts[0].num_ranks(world_size);
    std::vector<Point> points;
    for (const std::string& kind : kinds)
        for (const LayoutChoice& layout : layouts) {
            const int ranks = layout.num_ranks(world_size);
            const int64_t grown = std::max<int64_t>(1, num_requests * ranks / first_ranks);
            points.push_back({kind, layout, ranks, kind == "weak" ? grown : num_requests});
        }
    return points;
}

struct Measured {
    int num_nodes = 1;
    std::string skipped{};  // why
    ThroughputFigures figures{};
};

// The table, with speed-up and efficiency against the first layout of each kind that ran.
class ScalingTable {
  public:
    ScalingTable() : report_("scaling", kColumns) {}
    BenchReport& report() { return report_; }
    bool all_valid() const { return all_valid_; }

    void add(const Point& point, const Measured& measured) {
        const ThroughputFigures& figures = measured.figures;
        all_valid_ &= figures.results_hold;
        if (point.kind != kind_) first_rate_ = 0;
        kind_ = point.kind;
        if (first_rate_ == 0) {
            first_rate_ = figures.output_tokens_per_s;
            first_ranks_ = point.num_ranks;
        }
        const double speedup = first_rate_ > 0 ? figures.output_tokens_per_s / first_rate_ : 0;
        report_.add_row({point.kind, point.layout.text, int64_t{point.num_ranks},
                         int64_t{measured.num_nodes}, point.num_requests, measured.skipped,
                         figures.wall_s, figures.spread, figures.output_tokens_per_s,
                         figures.output_tokens_per_s / point.num_ranks, speedup,
                         speedup * first_ranks_ / point.num_ranks, figures.word});
    }
    // Throws Error(communication) unless the results hold.
    void require_valid() const {
        if (!all_valid_)
            throw Error(ErrorKind::communication,
                        "the results do not hold: ferry bench throughput says why");
    }

  private:
    BenchReport report_;
    std::string kind_;
    double first_rate_ = 0;
    int first_ranks_ = 1;
    bool all_valid_ = true;
};

std::vector<LayoutChoice> parse_layouts(const std::vector<std::string>& texts) {
    std::vector<LayoutChoice> layouts;
    for (const std::string& text : texts) layouts.push_back(parse_layout_choice(text, "--layout"));
    return layouts;
}

// Collective: each layout on the first ranks of this job.
void scale_in_job(World& world, const Arguments& arguments) {
    BenchJob job(world, arguments);
    ThroughputRunner runner(world, job.watchdog ? &*job.watchdog : nullptr, job.config, job.model,
                            arguments.status_dir);
    WorkloadOptions options = workload_options(arguments, job.model.source->config().vocab_size);
    ScalingTable table;
    describe_bench(arguments, job, options, make_workload(options).size(), table.report());
    const std::vector<LayoutChoice> layouts = parse_layouts(
        arguments.layouts.empty() ? default_layouts(world.size()) : arguments.layouts);
    for (const Point& point : make_points(arguments.kinds, layouts, world.size(), options)) {
        if (world.all_max(stop_requested() ? 1 : 0) > 0) break;
        options.num_requests = point.num_requests;
        ThroughputSweep sweep;
        sweep.layouts = {point.layout};
        ThroughputCase about = sweep.cases(job.config)[0];
        if (const std::string& trace = job.config.log.trace; !trace.empty())
            about.trace = trace_path_of(trace, point.name());
        const ThroughputOutcome outcome =
            runner.run(std::move(about), point.layout, make_workload(options),
                       {.num_repetitions = arguments.repetitions,
                        .num_warmup_requests = arguments.warmup,
                        .seed = arguments.seed,
                        .stop_requested = [] { return stop_requested(); }});
        if (world.rank() == 0)
            table.add(point, {outcome.about.num_nodes, outcome.about.skipped,
                              figures_of(outcome, job.model.source->config())});
    }
    if (world.rank() == 0) table.report().publish(arguments.json, arguments.csv);
    if (world.all_max(table.all_valid() ? 0 : 1) > 0) table.require_valid();
}

// Options of `ferry bench throughput` that measure one point.
std::vector<std::string> throughput_arguments(const Arguments& arguments, const Point& point,
                                              const std::string& trace, const std::string& json) {
    std::vector<std::string> words{"bench", "throughput"};
    if (!arguments.config_file.empty()) words.push_back(arguments.config_file);
    const auto add = [&](const char* name, const std::string& value) {
        if (!value.empty()) words.insert(words.end(), {name, value});
    };
    add("--model", arguments.model);
    add("--shape", arguments.shape);
    for (const std::string& setting : arguments.overrides) add("--set", setting);
    if (!trace.empty()) add("--set", "log.trace=" + trace_path_of(trace, point.name()));
    add("--layout", point.layout.text);
    add("--requests", std::to_string(point.num_requests));
    add("--input", arguments.input);
    add("--output", arguments.output);
    add("--lengths", arguments.lengths_file);
    add("--prefix-share", fmt::format("{}", arguments.prefix_share));
    add("--arrivals", arguments.arrivals);
    if (arguments.rate > 0) add("--rate", fmt::format("{}", arguments.rate));
    add("--seed", std::to_string(arguments.seed));
    add("--warmup", std::to_string(arguments.warmup));
    add("--repetitions", std::to_string(arguments.repetitions));
    add("--status-dir", arguments.status_dir);
    add("--json", json);
    return words;
}

// Each layout as a job of its own.
class LaunchedScaling {
  public:
    explicit LaunchedScaling(const Arguments& arguments)
        : arguments_(arguments),
          launcher_(arguments.launcher == "auto" ? default_launcher() : arguments.launcher),
          result_path_((std::filesystem::path(arguments.json.empty() || arguments.json == "-"
                                                  ? std::string("scaling.json")
                                                  : arguments.json)
                            .string() +
                        fmt::format(".{}", ::getpid()))) {}

    void run() {
        const Config config = config_of(arguments_);
        check_outputs(arguments_, config);
        for (const Point& point : points()) {
            if (stop_requested()) break;
            measure(point, config.log.trace);
        }
        describe();
        table_.report().publish(arguments_.json, arguments_.csv);
        if (stop_requested())
            throw Error(ErrorKind::requeue, "stopped; what was finished before is reported");
        table_.require_valid();
    }

  private:
    std::vector<Point> points() const {
        const std::vector<LayoutChoice> layouts = parse_layouts(arguments_.layouts);
        for (const LayoutChoice& layout : layouts)
            if (layout.num_ranks(0) == 0)
                throw Error(ErrorKind::usage,
                            "--layout {}: with --launcher a layout names its ranks: colocated:4",
                            layout.text);
        if (layouts.empty())
            throw Error(ErrorKind::usage,
                        "--launcher: needs --layout, such as colocated:1,colocated:2,2:2");
        return make_points(arguments_.kinds, layouts, 0, workload_options(arguments_, 2));
    }

    void measure(const Point& point, const std::string& trace) {
        const std::vector<std::string> words = launcher_words(launcher_, point.num_ranks);
        tell("{}: {}\n", point.name(), fmt::join(words, " "));
        const int code =
            run_launched_job(words, throughput_arguments(arguments_, point, trace, result_path_));
        refuse_mistakes(code);
        table_.add(point, read_result(code));
        std::error_code gone;
        std::filesystem::remove(result_path_, gone);
    }

    // What the first job refuses is a mistake in the options, and others would refuse it too.
    void refuse_mistakes(int code) const {
        for (const ErrorKind kind : {ErrorKind::usage, ErrorKind::checkpoint, ErrorKind::input})
            if (code == exit_code(kind) && largest_.is_null())
                throw Error(kind, "the first job ended with exit code {} and said why", code);
    }

    // What the job wrote before it ended with `code`.
    Measured read_result(int code) {
        const bool stopped = code == exit_code(ErrorKind::requeue);
        const Json json =
            std::filesystem::exists(result_path_)
                ? Json::parse(read_text_file(result_path_, int64_t{1} << 30), nullptr, false)
                : Json();
        if (!json.is_object() || !json.contains("rows") || json["rows"].empty()) {
            Measured none{.skipped = stopped ? "stopped" : fmt::format("exit code {}", code)};
            none.figures.results_hold = stopped;
            if (!stopped && largest_.is_null())
                throw Error(ErrorKind::communication,
                            "--launcher: \"{}\" ended with exit code {} and left no results; does "
                            "it start ferry?",
                            launcher_, code);
            if (!stopped) none.figures.word = "NO";
            return none;
        }
        const Json& row = json["rows"][0];
        if (largest_.is_null() || row["ranks"] > largest_["rows"][0]["ranks"]) largest_ = json;
        return {.num_nodes = row["nodes"],
                .skipped = row["skipped"],
                .figures = {.wall_s = row["wall_s"],
                            .output_tokens_per_s = row["output_tokens_per_s"],
                            .spread = row["spread"],
                            .word = row["valid"],
                            .results_hold = code == 0 || stopped}};
    }

    // What was measured where, as the job with most ranks said it.
    void describe() {
        BenchReport& report = table_.report();
        report.add_parameter("launcher", launcher_);
        if (largest_.is_null()) return;
        for (const char* section : {"format", "time", "versions", "hosts", "config", "workload"})
            report.add_section(section, largest_[section].dump());
        for (const auto& [name, value] : largest_["parameters"].items()) {
            if (value.is_string())
                report.add_parameter(name, value.get<std::string>());
            else if (value.is_number_integer())
                report.add_parameter(name, value.get<int64_t>());
            else
                report.add_parameter(name, value.get<double>());
        }
    }

    const Arguments& arguments_;
    const std::string launcher_, result_path_;
    ScalingTable table_;
    Json largest_;
};

void scale_through_launcher(const Arguments& arguments) {
    if (launcher_tasks(own_environment) > 1)
        throw Error(ErrorKind::usage,
                    "--launcher: starts jobs itself; run ferry bench scaling once, without mpirun "
                    "or srun");
    install_stop_signals();
    LaunchedScaling(arguments).run();
}

}  // namespace

void add_bench_scaling(Command& bench) {
    Command command = bench.add_command(
        "scaling",
        "Throughput over a list of layouts, with speed-up and efficiency against the first: strong "
        "scaling (the same requests) and weak (as many per rank). Inside one job (mpirun, srun), "
        "each layout on the first ranks of it; or, with --launcher, each as a job of its own");
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
    command.option("--launcher", arguments->launcher,
                   "Start a job for each layout: a command in which {ranks} is the number of "
                   "ranks, or auto: srun in a Slurm allocation, else mpirun");
    add_workload_options(command, *arguments);
    command.on_run([arguments] {
        if (!arguments->launcher.empty()) return scale_through_launcher(*arguments);
        run_bench_job([&](World& world) { scale_in_job(world, *arguments); });
    });
}

}  // namespace ferry
