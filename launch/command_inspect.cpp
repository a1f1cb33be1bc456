#include <memory>

#include "base/log.h"
#include "comm/launcher.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/text_output.h"
#include "runtime/checkpoint.h"
#include "runtime/inspect.h"

namespace ferry {
namespace {

struct Arguments {
    std::string path;
    bool json = false, all = false, verify = false;
    int threads = 2;
};

void inspect(const Arguments& arguments) {
    refuse_several_tasks(own_environment, "inspect");
    const CheckpointSummary summary = summarise_checkpoint(arguments.path);
    if (arguments.verify && !summary.has_checksums)
        throw Error(ErrorKind::usage,
                    "--verify: a {} folder has no checksums; ferry convert writes them",
                    summary.format);
    for (const std::string& warning : summary.warnings) log_warn("{}", warning);
    if (arguments.json)
        print_text(to_json(summary) + "\n");
    else
        print_text(to_text(summary, arguments.all));
    if (!arguments.verify) return;
    ThreadPool pool(arguments.threads, /*scratch_bytes=*/64);
    const Checkpoint checkpoint(arguments.path);
    checkpoint.verify(pool);
    if (!arguments.json) print_text("all checksums are right\n");
}

}  // namespace

void add_inspect(Command& app) {
    Command command = app.add_command("inspect", "Show what is inside a checkpoint");
    auto arguments = std::make_shared<Arguments>();
    command
        .option("PATH", arguments->path, "Checkpoint folder, model.h5, or Hugging Face directory")
        .required();
    command.flag("--json", arguments->json, "For machines");
    command.flag("--all", arguments->all, "One line for every tensor");
    command.flag("--verify", arguments->verify, "Read everything and compare the checksums");
    command.option("--threads", arguments->threads, "Threads for --verify")
        .in_range(1, 1024)
        .show_default();
    command.on_run([arguments] { inspect(*arguments); });
}

}  // namespace ferry
