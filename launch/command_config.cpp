// `ferry config`: the effective configuration of a file, and what can be configured.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "launch/commands.h"
#include "runtime/config.h"

namespace ferry {
namespace {

struct Options {
    std::string file;
    std::vector<std::string> overrides;
};

void print_config(const Options& options) {
    const Config config = load_config(options.file, options.overrides);
    std::fputs(effective_yaml(config).c_str(), stdout);
}

}  // namespace

void add_config(CLI::App& app) {
    CLI::App* command = app.add_subcommand(
        "config", "Check a configuration and print all of it, defaults included");
    const auto options = std::make_shared<Options>();
    command->add_option("FILE", options->file, "YAML; without it, the defaults");
    command->add_option("--set", options->overrides, "section.key=value, after the file")
        ->take_all()
        ->expected(1);
    command->footer([] {
        return "Fields of the file, by section, with default, allowed values and meaning:\n" +
               describe_config_fields();
    });
    command->callback([options] { print_config(*options); });
}

}  // namespace ferry
