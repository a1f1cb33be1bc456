#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>

#include "base/error.h"
#include "launch/commands.h"
#include "launch/versions.h"
#include "runtime/spelling.h"

namespace {

int usage_error(const std::string& message) {
    std::fprintf(stderr, "ferry: usage: %s\n", message.c_str());
    return ferry::exit_code(ferry::ErrorKind::usage);
}

// A misspelt command would only be told as "a subcommand is required".
std::string explain(const CLI::App& app, int argc, char** argv, const CLI::ParseError& error) {
    const std::string first = argc > 1 ? argv[1] : "";
    std::vector<std::string> commands;
    for (const CLI::App* command : app.get_subcommands(nullptr))
        commands.push_back(command->get_name());
    const bool is_command = std::find(commands.begin(), commands.end(), first) != commands.end();
    if (first.empty() || first.starts_with("-") || is_command)
        return std::string(error.what()) + " (see ferry --help)";
    const std::string nearest = ferry::nearest_spelling(first, commands);
    return "no command " + first + (nearest.empty() ? "" : "; did you mean " + nearest + "?") +
           " (see ferry --help)";
}

}  // namespace

// The only place that catches: every failure becomes one line and an exit code.
int main(int argc, char** argv) {
    CLI::App app{"Ferry: distributed inference for mixture-of-experts models", "ferry"};
    app.set_version_flag("--version", ferry::describe_versions, "Versions of all that is linked");
    app.require_subcommand(1);
    ferry::add_bench(app);
    ferry::add_config(app);
    ferry::add_convert(app);
    ferry::add_doctor(app);
    ferry::add_generate(app);
    ferry::add_inspect(app);
    ferry::add_report(app);
    ferry::add_top(app);
    try {
        app.parse(argc, argv);  // also runs the command
        return 0;
    } catch (const CLI::Success& asked) {  // --help, --version
        return app.exit(asked);
    } catch (const CLI::ParseError& error) {
        return usage_error(explain(app, argc, argv, error));
    } catch (const ferry::Error& error) {
        std::fprintf(stderr, "ferry: %s: %s\n", ferry::to_string(error.kind()), error.what());
        return ferry::exit_code(error.kind());
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "ferry: memory: this machine has not enough for what was asked\n");
        return ferry::exit_code(ferry::ErrorKind::memory);
    } catch (const std::exception& error) {  // of the standard library, where nobody expected one
        std::fprintf(stderr, "ferry: unexpected: %s\n", error.what());
        return 1;
    }
}
