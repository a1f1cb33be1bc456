#include "launch/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/error.h"
#include "runtime/spelling.h"

namespace ferry {
namespace {

// What the words of a command line lead to: "bench load" of `ferry bench load --modle x`.
struct Asked {
    const CLI::App* command;
    std::string path;                 // "ferry bench load"
    std::vector<std::string> others;  // the words after it
};

Asked what_is_asked(const CLI::App& app, int argc, char** argv) {
    Asked asked{.command = &app, .path = app.get_name(), .others = {argv + 1, argv + argc}};
    while (!asked.others.empty()) {
        const std::vector<const CLI::App*> next = asked.command->get_subcommands(
            [&](const CLI::App* command) { return command->get_name() == asked.others.front(); });
        if (next.empty()) break;
        asked.command = next.front();
        asked.path += " " + asked.others.front();
        asked.others.erase(asked.others.begin());
    }
    return asked;
}

std::string suggest(const std::string& word, const std::vector<std::string>& known) {
    const std::string nearest = nearest_spelling(word, known);
    return nearest.empty() ? "" : "; did you mean " + nearest + "?";
}

// A command of which one must follow: CLI11 would not name them.
std::string explain_command(const Asked& asked) {
    std::vector<std::string> commands;
    for (const CLI::App* command : asked.command->get_subcommands(nullptr))
        commands.push_back(command->get_name());
    if (asked.others.empty())
        return fmt::format("{} needs a command: {}", asked.path, fmt::join(commands, ", "));
    return fmt::format("{} has no command {}{}", asked.path, asked.others.front(),
                       suggest(asked.others.front(), commands));
}

std::string explain_extras(const Asked& asked, const std::string& what) {
    std::vector<std::string> options;
    const CLI::Option* const file = asked.command->get_option_no_throw("CONFIG");
    for (const CLI::Option* option : asked.command->get_options())
        for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
    for (const std::string& word : asked.others) {
        const std::string name = word.substr(0, word.find('='));
        if (file != nullptr && name == "--config")
            return fmt::format("{} takes its configuration without an option: {} FILE.yaml",
                               asked.path, asked.path);
        if (name.starts_with("--") &&
            std::find(options.begin(), options.end(), name) == options.end())
            return fmt::format("{} has no option {}{}", asked.path, name, suggest(name, options));
    }
    return what;
}

std::string explain(const CLI::App& app, int argc, char** argv, const CLI::ParseError& error) {
    const Asked asked = what_is_asked(app, argc, argv);
    const bool lacks_command = asked.command->get_require_subcommand_min() > 0;
    const bool has_option = !asked.others.empty() && asked.others.front().starts_with("-");
    std::string text = error.what();
    if (lacks_command && !has_option)
        text = explain_command(asked);
    else if (lacks_command || dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr)
        text = explain_extras(asked, text);
    return fmt::format("{} (see {} --help)", text, asked.path);
}

// `allowed`: "0 .. 1024", for the help and for what is told of other values.
template <typename Number>
CLI::Validator number_that_is(const std::string& allowed,
                              const std::function<bool(Number)>& is_good) {
    return {[=](std::string& text) {
                Number number{};
                if (CLI::detail::lexical_cast(text, number) && is_good(number))
                    return std::string();
                return fmt::format("must be {}; is {}", allowed, text);
            },
            allowed};
}

template <typename Number>
CLI::Validator number_between(Number low, Number high) {
    return number_that_is<Number>(fmt::format("{} .. {}", low, high),
                                  [=](Number number) { return low <= number && number <= high; });
}

}  // namespace

CommandOption& CommandOption::required() {
    option_->required();
    return *this;
}

CommandOption& CommandOption::in_range(int low, int high) {
    option_->check(number_between(low, high));
    return *this;
}

CommandOption& CommandOption::in_range(double low, double high) {
    option_->check(number_between(low, high));
    return *this;
}

CommandOption& CommandOption::positive() {
    option_->check(number_that_is<double>("more than 0", [](double n) { return n > 0; }));
    return *this;
}

CommandOption& CommandOption::non_negative() {
    option_->check(number_that_is<double>("0 or more", [](double n) { return n >= 0; }));
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
    option_->allow_extra_args(false);
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
