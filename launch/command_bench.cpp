#include "launch/command_bench.h"

#include "launch/command_line.h"
#include "launch/commands.h"

namespace ferry {

void add_bench(Command& app) {
    Command bench = app.add_command("bench", "Measure what this machine or cluster reaches");
    bench.needs_command();
    add_bench_exchange(bench);
    add_bench_layer(bench);
    add_bench_load(bench);
    add_bench_scaling(bench);
    add_bench_throughput(bench);
}

}  // namespace ferry
