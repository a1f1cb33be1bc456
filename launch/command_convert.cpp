#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "base/cores.h"
#include "base/log.h"
#include "comm/launcher.h"
#include "comm/watchdog.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/end_job.h"
#include "launch/keeper.h"
#include "runtime/convert.h"

namespace ferry {
namespace {

struct Arguments {
    std::string hf_directory, out_directory, dtype = "keep";
    int64_t expert_shards = 0;
    int threads = 0;
};

constexpr double kGigabyte = 1e9;

// One line that rewrites itself on a terminal; a plain line every ten seconds elsewhere.
class ProgressLine {
  public:
    explicit ProgressLine(int num_nodes) {
        if (num_nodes > 1) name_ = fmt::format("convert (first of {} nodes)", num_nodes);
    }
    void operator()(const ConvertProgress& p) {
        const bool is_done = p.done_bytes == p.total_bytes;
        const double percent = p.total_bytes == 0 ? 100.0
                                                  : 100.0 * static_cast<double>(p.done_bytes) /
                                                        static_cast<double>(p.total_bytes);
        const double left = static_cast<double>(p.total_bytes - p.done_bytes);
        const std::string text = fmt::format(
            "{}: {:5.1f}%  {:.2f} of {:.2f} GB  {:.2f} GB/s{}", name_, percent,
            static_cast<double>(p.done_bytes) / kGigabyte,
            static_cast<double>(p.total_bytes) / kGigabyte, p.bytes_per_second / kGigabyte,
            is_done || p.bytes_per_second <= 0
                ? ""
                : fmt::format("  {:.0f} s left", left / p.bytes_per_second));
        if (is_terminal_) {
            constexpr int kBarWidth = 30;
            const int filled = static_cast<int>(percent / 100 * kBarWidth);
            tell("\r[{:#<{}}{:.<{}}] {}\x1b[K", "", filled, "", kBarWidth - filled, text);
            std::fflush(stderr);
        } else if (is_done || p.seconds - printed_ >= 10) {
            printed_ = p.seconds;
            log_info("{}", text);
        }
    }
    void end() const {
        if (is_terminal_) tell("\n");
    }

  private:
    std::string name_ = "convert";
    bool is_terminal_ = ::isatty(STDERR_FILENO) != 0;
    double printed_ = 0;
};

// `world`: null for one process alone.
void convert_on(const Arguments& arguments, World* world) {
    if (world != nullptr) {
        set_log_rank(world->rank(), world->host());
        // Shards are shared out by size, and disks may be slow: nobody is late within a day.
        world->set_deadline(24 * 3600, "while shards are written");
    }
    ConvertOptions options{.dtype = {}, .expert_shards = arguments.expert_shards};
    const int cores = world != nullptr ? world->own_cores()
                                       : usable_cores(static_cast<int>(allowed_cores().size()));
    options.threads = arguments.threads > 0 ? arguments.threads : cores;
    if (arguments.dtype != "keep")
        options.dtype = arguments.dtype == "fp8"              ? DType::fp8_e4m3
                        : arguments.dtype.starts_with("int4") ? DType::int4x2
                                                              : parse_dtype(arguments.dtype);
    if (arguments.dtype == "int4-layers") options.int4 = Int4Weights::layers;
    if (arguments.dtype == "int4-all") options.int4 = Int4Weights::all;
    ProgressLine line(world == nullptr ? 1 : world->num_nodes());
    const ConvertProgress done = convert_checkpoint(
        arguments.hf_directory, arguments.out_directory, options,
        [&](const ConvertProgress& progress) { line(progress); }, world);
    if (world != nullptr && world->rank() != 0) return;
    line.end();
    fmt::print("{}: {:.2f} GB in {:.1f} s ({:.2f} GB/s){}\n", arguments.out_directory,
               static_cast<double>(done.total_bytes) / kGigabyte, done.seconds,
               done.bytes_per_second / kGigabyte,
               done.kept_shards == 0
                   ? ""
                   : fmt::format(", {} shards were there already", done.kept_shards));
}

void convert(const Arguments& arguments) {
    ::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is told like a full disk
    // Alone it needs no MPI, which login nodes often forbid.
    if (launcher_tasks(own_environment) == 1) return convert_on(arguments, nullptr);
    go_on_under_keeper();
    World world = start_world();
    try {
        // Nothing else would notice a host that is cut off in the hours that converting may take.
        std::optional<Watchdog> watchdog;
        if (world.size() > 1) watchdog.emplace(world, WatchdogOptions{});
        convert_on(arguments, &world);
    } catch (const Error& error) {
        if (world.size() == 1) throw;
        end_job(world, error);
    }
}

}  // namespace

void add_convert(Command& app) {
    Command command = app.add_command(
        "convert",
        "Convert a Hugging Face directory to sharded HDF5; under mpirun the ranks share "
        "the shards");
    auto arguments = std::make_shared<Arguments>();
    command.option("HF_DIR", arguments->hf_directory, "config.json and *.safetensors").required();
    command.option("OUT_DIR", arguments->out_directory, "Folder to write").required();
    command
        .option("--expert-shards", arguments->expert_shards,
                "Files for the routed experts; 0: of at most 8 GiB each")
        .non_negative();
    command
        .option("--dtype", arguments->dtype,
                "Type of the weights; int4: of the routed experts; int4-layers: of all layers, "
                "where inputs are a multiple of 32; int4-all: of lm_head, too")
        .one_of({"keep", "bf16", "f32", "fp8", "int4", "int4-layers", "int4-all"})
        .show_default();
    command
        .option("--threads", arguments->threads,
                "Threads of each rank; 0: the cores, shared by the ranks of a node")
        .in_range(0, 1024)
        .show_default();
    command.on_run([arguments] { convert(*arguments); });
}

}  // namespace ferry
