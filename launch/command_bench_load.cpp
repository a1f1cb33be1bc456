// `ferry bench load`: reading a checkpoint into memory by layout, beside plain reading of the same
// files.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "base/log.h"
#include "base/median.h"
#include "comm/progress_state.h"
#include "launch/bench_arguments.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "runtime/bench/load.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

struct Arguments : BenchArguments {
    std::vector<std::string> layouts, states{"cold", "warm"};
};

const std::vector<BenchColumn> kColumns{
    {.key = "layout", .heading = "layout"},
    {.key = "ranks", .heading = "ranks"},
    {.key = "state", .heading = "files"},
    {.key = "cached_share", .heading = "cached %", .num_digits = 0, .scale = 100},
    {.key = "dropped_by", .heading = ""},
    {.key = "skipped", .heading = "skipped"},
    {.key = "load_s", .heading = "load s", .num_digits = 2},
    {.key = "spread", .heading = "spread %", .num_digits = 0, .scale = 100},
    {.key = "load_bytes", .heading = "MB", .num_digits = 1, .scale = 1e-6},
    {.key = "load_GBps", .heading = "GB/s", .num_digits = 2},
    {.key = "load_GBps_per_rank", .heading = "/rank", .num_digits = 2},
    {.key = "raw_s", .heading = "read s", .num_digits = 2},
    {.key = "raw_bytes", .heading = "MB", .num_digits = 1, .scale = 1e-6},
    {.key = "raw_GBps", .heading = "GB/s", .num_digits = 2},
    {.key = "of_raw", .heading = "load/read %", .num_digits = 0, .scale = 100}};

template <typename Body>
double seconds(Body&& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Of every rank's seconds, the longest.
double slowest(World& world, double own_s) {
    return static_cast<double>(world.all_max(static_cast<int64_t>(own_s * 1e9))) * 1e-9;
}

class LoadBench {
  public:
    LoadBench(BenchJob& job, const Arguments& arguments)
        : job_(job), arguments_(arguments), report_("load", kColumns) {
        if (job.config.model.path.empty())
            throw Error(ErrorKind::usage, "bench load: needs a checkpoint (--model)");
        if (job.world.rank() == 0 && !job.config.log.trace.empty())
            log_warn("log.trace is not written by ferry bench load");
        files_ = weight_files(job.config.model.path);
    }

    void run() {
        const WorkloadOptions none;
        describe_bench(arguments_, job_, none, 0, report_);
        report_.add_parameter("files MB", static_cast<double>(total_file_bytes(files_)) * 1e-6);
        report_.add_parameter(
            "verify", std::string(job_.config.checkpoint.verify == Config::Checkpoint::Verify::full
                                      ? "full: every byte is read twice"
                                      : "off"));
        std::vector<LayoutChoice> layouts;
        for (const std::string& text : arguments_.layouts)
            layouts.push_back(parse_layout_choice(text, "--layout"));
        if (layouts.empty()) layouts.push_back(layout_choice_of(job_.config, job_.world.size()));
        for (const LayoutChoice& layout : layouts)
            for (const std::string& state : arguments_.states) {
                if (job_.world.all_max(stop_requested() ? 1 : 0) > 0) break;
                const int ranks = layout.num_ranks(job_.world.size());
                std::unique_ptr<World> part =
                    ranks <= job_.world.size() ? job_.world.first_ranks(ranks) : nullptr;
                if (part != nullptr)
                    measure(*part, layout, state == "cold");
                else if (job_.world.rank() == 0)
                    skip(layout, ranks, state);
                part.reset();
                job_.world.wait_quietly();
            }
        if (job_.world.rank() == 0) report_.publish(arguments_.json, arguments_.csv);
    }

  private:
    void skip(const LayoutChoice& layout, int ranks, const std::string& state) {
        report_.add_row({layout.text, int64_t{ranks}, state, 0.0, std::string(),
                         fmt::format("needs {} ranks, this job has {}", ranks, job_.world.size()),
                         0.0, 0.0, int64_t{0}, 0.0, 0.0, 0.0, int64_t{0}, 0.0, 0.0});
    }

    // Cold: what may be dropped is; warm: all has been read just before. Returns what is cached
    // now, on the node that has most.
    double prepare(World& part, bool cold) {
        if (cold) {
            part.barrier();
            if (part.node_rank() == 0) dropped_by_ = drop_from_cache(files_);
        } else {
            read_part(files_, part.node_rank(), part.node_size());
        }
        part.barrier();
        const double share = part.node_rank() == 0 ? cached_share(files_) : 0;
        return static_cast<double>(part.all_max(static_cast<int64_t>(share * 1e6))) * 1e-6;
    }

    // Pages that could not be dropped are no cold files.
    static std::string state_of(bool cold, double cached) {
        if (!cold) return "warm";
        return cached <= kColdShare ? "cold" : "cached";
    }

    void measure(World& part, const LayoutChoice& layout, bool cold) {
        std::vector<double> load_s, raw_s;
        int64_t load_bytes = 0, raw_bytes = 0;
        double cached = 0;
        Config config = job_.config;
        config.layout.mode = layout.mode;
        config.layout.attention_ranks = layout.attention_ranks;
        config.layout.expert_ranks = layout.expert_ranks;
        config.layout.tp_size = layout.tp_size;
        for (int i = 0; i < arguments_.repetitions; ++i) {
            cached = std::max(cached, prepare(part, cold));
            raw_s.push_back(slowest(
                part, seconds([&] { raw_bytes = read_part(files_, part.rank(), part.size()); })));
            raw_bytes = part.all_sum(raw_bytes);
            cached = std::max(cached, prepare(part, cold));
            std::atomic<int64_t> bytes{0};
            std::unique_ptr<LoadedEngine> loaded;
            load_s.push_back(slowest(part, seconds([&] {
                                         loaded = std::make_unique<LoadedEngine>(
                                             config, job_.model, part,
                                             [&](int64_t done, int64_t, bool verifying) {
                                                 if (!verifying) bytes = done;
                                             });
                                     })));
            load_bytes = part.all_sum(bytes.load());
            loaded->unload();
        }
        if (part.rank() != 0) return;
        const double load = median(load_s), raw = median(raw_s);
        const double load_rate = static_cast<double>(load_bytes) / load * 1e-9,
                     raw_rate = static_cast<double>(raw_bytes) / raw * 1e-9;
        const auto [least, most] = std::ranges::minmax(load_s);
        report_.add_row({layout.text, int64_t{part.size()}, state_of(cold, cached), cached,
                         cold ? dropped_by_ : std::string(), std::string(), load,
                         (most - least) / load, load_bytes, load_rate, load_rate / part.size(), raw,
                         raw_bytes, raw_rate, load_rate / raw_rate});
    }

    BenchJob& job_;
    const Arguments& arguments_;
    BenchReport report_;
    std::vector<std::string> files_;
    std::string dropped_by_;
};

}  // namespace

void add_bench_load(Command& bench) {
    Command command = bench.add_command(
        "load",
        "Loading a checkpoint by layout, beside plain reading of the same files by the same ranks "
        "in the same run. cold: the files' pages are dropped from the page cache first, with "
        "root's rights of the whole node where files alone did not do; cached: pages stayed all "
        "the same (cached %), which is no cold start; warm: they have just been read. Seconds are "
        "medians of the slowest rank. checkpoint.verify is off unless --set says full");
    const auto arguments = std::make_shared<Arguments>();
    add_checkpoint_options(command, *arguments);
    command
        .option("--layout", arguments->layouts,
                "2:2 (attention:expert ranks), 2:2:2 (and TP size), colocated:RANKS[:TP]")
        .comma_separated();
    command.option("--files", arguments->states, "cold, warm")
        .comma_separated()
        .one_of({"cold", "warm"})
        .show_default();
    command.option("--repetitions", arguments->repetitions, "Of each")
        .in_range(1, 1000)
        .show_default();
    command.on_run([arguments] {
        // --set may say otherwise.
        arguments->overrides.insert(arguments->overrides.begin(), "checkpoint.verify=off");
        run_bench_job([&](World& world) {
            BenchJob job(world, *arguments);
            LoadBench(job, *arguments).run();
        });
    });
}

}  // namespace ferry
