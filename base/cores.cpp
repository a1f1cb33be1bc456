#include "base/cores.h"

#include <fmt/core.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "base/cgroup.h"

namespace ferry {

std::vector<int> allowed_cores() {
    std::vector<int> cores;
    // The kernel refuses masks that are shorter than its own.
    for (int size = CPU_SETSIZE; cores.empty() && size <= 1 << 20; size *= 2) {
        const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(
            CPU_ALLOC(size), [](cpu_set_t* given) { CPU_FREE(given); });
        const size_t bytes = CPU_ALLOC_SIZE(size);
        if (mask == nullptr || sched_getaffinity(0, bytes, mask.get()) != 0) continue;
        for (int core = 0; core < size; ++core)
            if (CPU_ISSET_S(core, bytes, mask.get())) cores.push_back(core);
    }
    if (cores.empty()) cores.push_back(0);
    return cores;
}

int usable_cores(int num_cores, int num_processes) {
    const std::optional<double> quota = cgroup_cpu_quota();
    if (!quota) return num_cores;
    return std::clamp(static_cast<int>(*quota / num_processes), 1, num_cores);
}

std::string core_ranges(std::span<const int> cores) {
    std::string text;
    for (size_t i = 0; i < cores.size();) {
        size_t last = i;
        while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
        if (!text.empty()) text += ',';
        text +=
            last == i ? fmt::format("{}", cores[i]) : fmt::format("{}-{}", cores[i], cores[last]);
        i = last + 1;
    }
    return text;
}

std::vector<int> parse_core_ranges(std::string_view text) {
    std::vector<int> cores;
    const char* at = text.data();
    const char* end = at + text.size();
    while (at < end) {
        int first = 0;
        at = std::from_chars(at, end, first).ptr;
        int last = first;
        if (at < end && *at == '-') at = std::from_chars(at + 1, end, last).ptr;
        for (int core = first; core <= last; ++core) cores.push_back(core);
        if (at < end && *at != ',') break;
        ++at;
    }
    return cores;
}

int share_of_cores(std::span<const int> own, std::span<const std::vector<int>> of_all) {
    double share = 0;
    for (const int core : own) {
        const auto users =
            std::count_if(of_all.begin(), of_all.end(), [&](const std::vector<int>& cores) {
                return std::find(cores.begin(), cores.end(), core) != cores.end();
            });
        share += 1.0 / static_cast<double>(std::max<std::ptrdiff_t>(1, users));
    }
    constexpr double kRounding = 1e-6;  // three thirds are one core
    return std::max(1, static_cast<int>(share + kRounding));
}

}  // namespace ferry
