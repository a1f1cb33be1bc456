#include "runtime/bench/machine.h"

#include <fmt/core.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "layers/cpu/fma_peak.h"

namespace ferry {
namespace {

constexpr double kOthersShare = 0.05, kStealShare = 0.01, kSpeedChange = 0.10;
constexpr double kDriftS = 1e-3, kDriftShare = 1e-3;
constexpr int kBursts = 4;

double clock_s(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The text after "key" and a colon in a file of such lines.
std::string find_line(const char* path, const std::string& key) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (!line.starts_with(key)) continue;
        const size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        const size_t begin = line.find_first_not_of(" \t", colon + 1);
        return begin == std::string::npos ? "" : line.substr(begin);
    }
    return "";
}

int64_t kibibytes(const char* path, const std::string& key) {
    return std::atoll(find_line(path, key).c_str()) * 1024;
}

// The first line of /proc/stat: user nice system idle iowait irq softirq steal, in ticks.
void read_stat(MachineSample& sample) {
    std::ifstream file("/proc/stat");
    std::string name;
    double ticks[8] = {};
    file >> name;
    for (double& each : ticks) file >> each;
    const auto per_s = static_cast<double>(sysconf(_SC_CLK_TCK));
    sample.node_busy_s = (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / per_s;
    sample.node_steal_s = ticks[7] / per_s;
}

int64_t count_throttles() {
    int64_t num = 0;
    std::error_code none;
    for (const auto& cpu : std::filesystem::directory_iterator("/sys/devices/system/cpu", none)) {
        std::ifstream file(cpu.path() / "thermal_throttle/core_throttle_count");
        int64_t count = 0;
        if (file >> count) num += count;
    }
    return num;
}

double thread_speed() {
    double best = 0;
    for (int i = 0; i < kBursts; ++i) {
        const double begin = thread_cpu_seconds();
        const double flops = fma_burst();
        best = std::max(best, flops / (thread_cpu_seconds() - begin));
    }
    return best;
}

}  // namespace

MachineInfo machine_info() {
    MachineInfo info;
    info.cpu = find_line("/proc/cpuinfo", "model name");
    if (info.cpu.empty()) info.cpu = "unknown";
    utsname name{};
    if (uname(&name) == 0) {
        info.host = name.nodename;
        info.kernel = fmt::format("{} {}", name.sysname, name.release);
    }
    info.cores = ::sysconf(_SC_NPROCESSORS_ONLN);
    info.memory_bytes = kibibytes("/proc/meminfo", "MemTotal");
    return info;
}

MemoryUse memory_use() {
    return {.resident_bytes = kibibytes("/proc/self/status", "VmRSS"),
            .peak_bytes = kibibytes("/proc/self/status", "VmHWM")};
}

void reset_peak_memory() {
    std::ofstream("/proc/self/clear_refs") << "5";
}

MachineSample sample_machine() {
    MachineSample sample;
    sample.flops_per_cpu_s = thread_speed();
    sample.num_throttles = count_throttles();
    read_stat(sample);
    sample.own_cpu_s = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    sample.steady_s = clock_s(CLOCK_MONOTONIC);
    sample.realtime_s = clock_s(CLOCK_REALTIME);
    return sample;
}

std::vector<std::string> clock_doubts(const std::vector<MachineSpan>& ranks, int64_t cores) {
    std::vector<std::string> doubts;
    std::map<int, double> own_s;
    for (const MachineSpan& rank : ranks)
        own_s[rank.node] += rank.after.own_cpu_s - rank.before.own_cpu_s;
    std::map<int, bool> seen;
    for (size_t r = 0; r < ranks.size(); ++r) {
        const MachineSpan& rank = ranks[r];
        const double wall_s = rank.after.steady_s - rank.before.steady_s;
        const double drift_s = rank.after.realtime_s - rank.before.realtime_s - wall_s;
        if (std::abs(drift_s) > kDriftS && std::abs(drift_s) > kDriftShare * wall_s)
            doubts.push_back(
                fmt::format("rank {}: its two clocks drifted by {:.1f} ms", r, drift_s * 1e3));
        const double speed = rank.after.flops_per_cpu_s / rank.before.flops_per_cpu_s - 1;
        if (std::abs(speed) > kSpeedChange)
            doubts.push_back(
                fmt::format("rank {}: its core's speed changed by {:+.0f} %", r, speed * 100));
        if (std::exchange(seen[rank.node], true)) continue;
        const double core_s = wall_s * static_cast<double>(cores);
        const double others_s = rank.after.node_busy_s - rank.before.node_busy_s - own_s[rank.node];
        if (others_s > kOthersShare * core_s)
            doubts.push_back(fmt::format("node {}: others used {:.0f} % of its cores", rank.node,
                                         others_s / core_s * 100));
        const double steal_s = rank.after.node_steal_s - rank.before.node_steal_s;
        if (steal_s > kStealShare * core_s)
            doubts.push_back(fmt::format("node {}: {:.0f} % of its cores' time was stolen",
                                         rank.node, steal_s / core_s * 100));
        if (rank.after.num_throttles > rank.before.num_throttles)
            doubts.push_back(fmt::format("node {}: cores were throttled {} times", rank.node,
                                         rank.after.num_throttles - rank.before.num_throttles));
    }
    return doubts;
}

}  // namespace ferry
