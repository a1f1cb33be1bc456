#include "launch/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/error.h"
#include "runtime/spelling.h"

namespace ferry {
namespace {

// A misspelt command would only be told as "a subcommand is required".
std::string explain(const CLI::App& app, int argc, char** argv, const CLI::ParseError& error) {
    const std::string first = argc > 1 ? argv[1] : "";
    std::vector<std::string> commands;
    for (const CLI::App* command : app.get_subcommands(nullptr))
        commands.push_back(command->get_name());
    const bool is_command = std::find(commands.begin(), commands.end(), first) != commands.end();
    if (first.empty() || first.starts_with("-") || is_command)
        return std::string(error.what()) + " (see ferry --help)";
    const std::string nearest = nearest_spelling(first, commands);
    return "no command " + first + (nearest.empty() ? "" : "; did you mean " + nearest + "?") +
           " (see ferry --help)";
}

}  // namespace

CommandOption& CommandOption::required() {
    option_->required();
    return *this;
}

CommandOption& CommandOption::in_range(int low, int high) {
    option_->check(CLI::Range(low, high));
    return *this;
}

CommandOption& CommandOption::in_range(double low, double high) {
    option_->check(CLI::Range(low, high));
    return *this;
}

CommandOption& CommandOption::positive() {
    option_->check(CLI::PositiveNumber);
    return *this;
}

CommandOption& CommandOption::non_negative() {
    option_->check(CLI::NonNegativeNumber);
    return *this;
}

CommandOption& CommandOption::one_of(const std::vector<std::string>& names) {
    option_->check(CLI::IsMember(names));
    return *this;
}

CommandOption& CommandOption::comma_separated() {
    option_->delimiter(',');
    return *this;
}

CommandOption& CommandOption::one_each_time() {
    option_->take_all()->expected(1);
    return *this;
}

CommandOption& CommandOption::show_default() {
    option_->capture_default_str();
    return *this;
}

Command Command::add_command(const std::string& name, const std::string& help) {
    return Command(*app_->add_subcommand(name, help));
}

void Command::needs_command() {
    app_->require_subcommand(1);
}

template <typename Value>
CommandOption Command::option(const std::string& name, Value& value, const std::string& help) {
    return CommandOption(*app_->add_option(name, value, help));
}

template CommandOption Command::option(const std::string&, std::string&, const std::string&);
template CommandOption Command::option(const std::string&, int&, const std::string&);
template CommandOption Command::option(const std::string&, int64_t&, const std::string&);
template CommandOption Command::option(const std::string&, uint64_t&, const std::string&);
template CommandOption Command::option(const std::string&, double&, const std::string&);
template CommandOption Command::option(const std::string&, std::vector<std::string>&,
                                       const std::string&);
template CommandOption Command::option(const std::string&, std::vector<int>&, const std::string&);
template CommandOption Command::option(const std::string&, std::vector<int64_t>&,
                                       const std::string&);

CommandOption Command::flag(const std::string& name, bool& value, const std::string& help) {
    return CommandOption(*app_->add_flag(name, value, help));
}

void Command::flag_version(const std::function<std::string()>& text, const std::string& help) {
    app_->set_version_flag("--version", text, help);
}

void Command::footer(const std::string& text) {
    app_->footer(text);
}

void Command::footer(const std::function<std::string()>& text) {
    app_->footer(text);
}

void Command::on_run(const std::function<void()>& run) {
    app_->callback(run);
}

CommandLine::CommandLine(const std::string& name, const std::string& help)
    : app_(std::make_unique<CLI::App>(help, name)) {}

CommandLine::~CommandLine() = default;

int CommandLine::run(int argc, char** argv) {
    try {
        app_->parse(argc, argv);
        return 0;
    } catch (const CLI::Success& asked) {  // --help, --version
        return app_->exit(asked);
    } catch (const CLI::ParseError& error) {
        throw Error(ErrorKind::usage, explain(*app_, argc, argv, error));
    }
}

}  // namespace ferry
