#include "base/memory_limit.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace ferry {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

}  // namespace

std::optional<int64_t> cgroup_memory_limit() {
    std::optional<int64_t> least;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == line.npos || second == line.npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool version1 = controllers.find("memory") != controllers.npos;
        if (!version1 && !controllers.empty()) continue;
        const fs::path root = version1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
        const char* name = version1 ? "memory.limit_in_bytes" : "memory.max";
        for (fs::path group = line.substr(second + 1); !group.empty();
             group = group.parent_path()) {
            const std::string text = first_line(root / group.relative_path() / name);
            if (!text.empty() && text != "max") {
                const int64_t bytes = std::atoll(text.c_str());
                if (bytes > 0 && (!least || bytes < *least)) least = bytes;
            }
            if (group == group.root_path()) break;
        }
    }
    return least;
}

int64_t memory_limit() {
    const int64_t machine = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
    return std::min(machine, cgroup_memory_limit().value_or(machine));
}

}  // namespace ferry
