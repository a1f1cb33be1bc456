// The processor cores that a process may use: a batch system or launcher leaves it some of them.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

// Numbers of the cores that this process may run on (its affinity mask), ascending, never empty.
std::vector<int> allowed_cores();

// How many threads keep these cores busy: as many as they are, or fewer where the CPU quota of the
// cgroup (containers have one), shared by `num_processes`, is less. At least 1.
int usable_cores(int num_cores, int num_processes = 1);

// "0-3,8", and back. `parse_core_ranges` takes what `core_ranges` wrote.
std::string core_ranges(std::span<const int> cores);
std::vector<int> parse_core_ranges(std::string_view text);

// How many cores a process has when each core is shared evenly by the processes that may run on
// it: 8 for one of 4 that are all allowed the same 32, 8 for one that is bound to 8 of its own.
// `of_all`: the cores of every process of the machine, `own` among them. At least 1.
int share_of_cores(std::span<const int> own, std::span<const std::vector<int>> of_all);

}  // namespace ferry
