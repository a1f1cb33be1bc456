// `ferry bench WHAT`: the benchmarks add themselves here.
#pragma once
namespace CLI {
class App;
}

namespace ferry {

void add_bench_exchange(CLI::App& bench);
void add_bench_layer(CLI::App& bench);
void add_bench_load(CLI::App& bench);
void add_bench_scaling(CLI::App& bench);
void add_bench_throughput(CLI::App& bench);

}  // namespace ferry
