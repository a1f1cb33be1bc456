// What was done on the emulated GPUs since the process began, for tests of how little it is.
#pragma once
#include <cstdint>

namespace cuda_emulation {

struct Counts {
    int64_t copies_to_host = 0, bytes_to_host = 0;
    int64_t kernel_launches = 0;  // by the host, none of those that were recorded in a graph
    int64_t graph_launches = 0;
    int64_t graph_nodes = 0;  // of the graphs that were made
};
Counts counts();

}  // namespace cuda_emulation
