// The memory that a process may use: a batch system or container leaves it less than the machine
// has.
#pragma once
#include <cstdint>
#include <optional>

namespace ferry {

// Bytes: the least limit of this process's cgroup and those above it, of either version; none: the
// machine's memory is all theirs.
std::optional<int64_t> cgroup_memory_limit();

// Bytes: the machine's memory, or the cgroup's limit where that is less.
int64_t memory_limit();

}  // namespace ferry
