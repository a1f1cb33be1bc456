// `ferry bench WHAT`: the benchmarks add themselves here.
#pragma once
namespace ferry {

class Command;  // command_line.h

void add_bench_exchange(Command& bench);
void add_bench_layer(Command& bench);
void add_bench_load(Command& bench);
void add_bench_scaling(Command& bench);
void add_bench_throughput(Command& bench);

}  // namespace ferry
