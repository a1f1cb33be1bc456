// Commands with their options, and what they run. Only command_line.cpp includes CLI11, which takes
// longer to compile than any command.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace ferry {

// An option or argument of a command: what is said of its values. A value that breaks it ends the
// command line with Error(usage).
class CommandOption {
  public:
    explicit CommandOption(CLI::Option& option) : option_(&option) {}

    CommandOption& required();
    CommandOption& in_range(int low, int high);  // ends included
    CommandOption& in_range(double low, double high);
    CommandOption& positive();
    CommandOption& non_negative();
    CommandOption& one_of(const std::vector<std::string>& names);
    CommandOption& comma_separated();
    CommandOption& one_each_time();  // may be repeated, and does not take the words that follow
    CommandOption& show_default();   // in the help

  private:
    CLI::Option* option_;
};

// A command as seen by what adds options to it. Values live longer than the command line.
class Command {
  public:
    explicit Command(CLI::App& app) : app_(&app) {}

    Command add_command(const std::string& name, const std::string& help);
    // One of its commands must follow.
    void needs_command();

    // name: "--json", "-o,--output", or of an argument "FILE". Value: std::string, int, int64_t,
    // uint64_t, double, or a vector of the first three.
    template <typename Value>
    CommandOption option(const std::string& name, Value& value, const std::string& help);
    CommandOption flag(const std::string& name, bool& value, const std::string& help);
    void flag_version(const std::function<std::string()>& text, const std::string& help);

    // Below the options in the help; a function is asked only then.
    void footer(const std::string& text);
    void footer(const std::function<std::string()>& text);
    void on_run(const std::function<void()>& run);

  private:
    CLI::App* app_;
};

// The whole of it: the command `name` is what all others are added to.
class CommandLine {
  public:
    CommandLine(const std::string& name, const std::string& help);
    ~CommandLine();

    Command root() { return Command(*app_); }
    // Runs the command that is asked for, or prints the help or version; returns the exit code.
    // Throws Error(usage), and whatever the command throws.
    int run(int argc, char** argv);

  private:
    std::unique_ptr<CLI::App> app_;
};

}  // namespace ferry
