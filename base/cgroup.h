// What a process may use of its machine: a batch system or container leaves it less than there is.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>

namespace ferry {

// The least limit of this process's cgroup and those above it, of either version; none: they leave
// it all. `root`: where proc and sys are.
// Bytes.
std::optional<int64_t> cgroup_memory_limit(const std::filesystem::path& root = "/");
// Cores, that is seconds of CPU time a second: 1.5 is three halves of one.
std::optional<double> cgroup_cpu_quota(const std::filesystem::path& root = "/");

// Bytes: the machine's memory, or the cgroup's limit where that is less.
int64_t memory_limit();

}  // namespace ferry
