#include "base/cgroup.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace ferry {
namespace {

namespace fs = std::filesystem;

struct Group {
    fs::path folder;
    int version = 2;
};

bool lists(const std::string& controllers, const std::string& wanted) {
    std::istringstream names(controllers);
    for (std::string name; std::getline(names, name, ',');)
        if (name == wanted) return true;
    return false;
}

// This process's group and those above it.
std::vector<Group> own_groups(const fs::path& root, const std::string& controller) {
    std::vector<Group> groups;
    std::ifstream file(root / "proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {  // 4:cpu,cpuacct:/a/b, or 0::/a/b
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == line.npos || second == line.npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const int version = controllers.empty() ? 2 : 1;
        if (version == 1 && !lists(controllers, controller)) continue;
        const fs::path top = root / "sys/fs/cgroup" / (version == 1 ? controller : "");
        for (fs::path group = line.substr(second + 1); !group.empty();
             group = group.parent_path()) {
            groups.push_back({top / group.relative_path(), version});
            if (group == group.root_path()) break;
        }
    }
    return groups;
}

// The first numbers of a file; none where it is missing or says "max".
std::vector<double> numbers_of(const fs::path& path) {
    std::vector<double> numbers;
    std::ifstream file(path);
    for (double number = 0; file >> number;) numbers.push_back(number);
    return numbers;
}

double first_number(const fs::path& path) {
    const std::vector<double> numbers = numbers_of(path);
    return numbers.empty() ? 0 : numbers[0];
}

void lower(std::optional<double>& least, double limit) {
    if (limit > 0 && (!least || limit < *least)) least = limit;
}

}  // namespace

std::optional<int64_t> cgroup_memory_limit(const fs::path& root) {
    constexpr double kNoLimit = 9e18;  // what version 1 says is a little more
    std::optional<double> least;
    for (const auto& [folder, version] : own_groups(root, "memory"))
        lower(least,
              first_number(folder / (version == 1 ? "memory.limit_in_bytes" : "memory.max")));
    if (!least || *least >= kNoLimit) return std::nullopt;
    return static_cast<int64_t>(*least);
}

std::optional<double> cgroup_cpu_quota(const fs::path& root) {
    std::optional<double> least;
    for (const auto& [folder, version] : own_groups(root, "cpu")) {
        std::vector<double> of_period = numbers_of(folder / "cpu.max");
        if (version == 1)
            of_period = {first_number(folder / "cpu.cfs_quota_us"),
                         first_number(folder / "cpu.cfs_period_us")};
        if (of_period.size() == 2 && of_period[1] > 0) lower(least, of_period[0] / of_period[1]);
    }
    return least;
}

int64_t memory_limit() {
    const int64_t machine = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
    return std::min(machine, cgroup_memory_limit().value_or(machine));
}

}  // namespace ferry
