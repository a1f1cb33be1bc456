#include "base/cores.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <charconv>

namespace ferry {

std::vector<int> allowed_cores() {
    std::vector<int> cores;
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0)
        for (int core = 0; core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &mask)) cores.push_back(core);
    if (cores.empty()) cores.push_back(0);
    return cores;
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
