// The subcommands of `ferry`: each adds itself, with its options and what it runs.
#pragma once
namespace ferry {

class Command;  // command_line.h

void add_bench(Command& app);
void add_config(Command& app);
void add_convert(Command& app);
void add_doctor(Command& app);
void add_generate(Command& app);
void add_inspect(Command& app);
void add_report(Command& app);
void add_top(Command& app);

}  // namespace ferry
