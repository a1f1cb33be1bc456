// `ferry config`: the effective configuration of a file, and what can be configured.
#include <cstdio>
#include <memory>

#include "comm/launcher.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/text_output.h"
#include "runtime/config.h"

namespace ferry {
namespace {

struct Options {
    std::string file;
    std::vector<std::string> overrides;
};

void print_config(const Options& options) {
    refuse_several_tasks(own_environment, "config");
    const Config config = load_config(options.file, options.overrides);
    print_text(effective_yaml(config));
}

}  // namespace

void add_config(Command& app) {
    Command command =
        app.add_command("config", "Check a configuration and print all of it, defaults included");
    const auto options = std::make_shared<Options>();
    command.option("FILE", options->file, "YAML; without it, the defaults");
    command.option("--set", options->overrides, "section.key=value, after the file")
        .one_each_time();
    command.footer([] {
        return "Fields of the file, by section, with default, allowed values and meaning:\n" +
               describe_config_fields();
    });
    command.on_run([options] { print_config(*options); });
}

}  // namespace ferry
