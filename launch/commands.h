// The subcommands of `ferry`: each adds itself, with its options and what it runs.
#pragma once
namespace CLI {
class App;
}

namespace ferry {

void add_bench(CLI::App& app);
void add_config(CLI::App& app);
void add_convert(CLI::App& app);
void add_doctor(CLI::App& app);
void add_generate(CLI::App& app);
void add_inspect(CLI::App& app);
void add_report(CLI::App& app);
void add_top(CLI::App& app);

}  // namespace ferry
