#include "launch/command_bench.h"

#include <CLI/CLI.hpp>

#include "launch/commands.h"

namespace ferry {

void add_bench(CLI::App& app) {
    CLI::App* bench = app.add_subcommand("bench", "Measure what this machine or cluster reaches");
    bench->require_subcommand(1);
    add_bench_exchange(*bench);
    add_bench_layer(*bench);
    add_bench_load(*bench);
    add_bench_scaling(*bench);
    add_bench_throughput(*bench);
}

}  // namespace ferry
