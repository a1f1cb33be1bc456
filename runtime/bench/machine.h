// The machine under a measurement: what it is, and whether its clocks can be trusted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ferry {

struct MachineInfo {
    std::string host;
    std::string cpu;     // model name
    std::string kernel;  // "Linux 6.1.0"
    int64_t cores = 0;   // of the machine, whether or not this process may use them
    int64_t memory_bytes = 0;
};
MachineInfo machine_info();

// Of this process, from /proc/self/status; 0 where there is none.
struct MemoryUse {
    int64_t resident_bytes = 0;
    int64_t peak_bytes = 0;
};
MemoryUse memory_use();
// From here on the peak begins anew; where the kernel does not know how, it stays that of the whole
// process.
void reset_peak_memory();

// Counters of a node and of this process; differences of two samples are of the time between.
// Plain bytes: ranks send it to each other.
struct MachineSample {
    double steady_s = 0;  // clocks
    double realtime_s = 0;
    double node_busy_s = 0;      // CPU time that anybody used on this node
    double node_steal_s = 0;     // CPU time that the hypervisor gave to others
    double own_cpu_s = 0;        // CPU time of this process
    int64_t num_throttles = 0;   // thermal throttling events of all cores; 0 where not known
    double flops_per_cpu_s = 0;  // multiply-adds of one thread: follows the clock frequency
};
// Takes some milliseconds of multiply-adds.
MachineSample sample_machine();

// One rank's samples around a measurement.
struct MachineSpan {
    int node = 0;
    MachineSample before{}, after{};
};
// Why the times between may not be those of a quiet machine at constant speed: one line for each
// reason; none: no doubt. Thresholds: others used 5 % of a node's cores' time, 1 % was stolen,
// cores were throttled, the speed of a thread changed by 10 %, clocks disagree by 1 ms and 0.1 %.
std::vector<std::string> clock_doubts(const std::vector<MachineSpan>& ranks, int64_t cores);

}  // namespace ferry
