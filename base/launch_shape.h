// How many threads a GPU kernel gets: a plain value, computed and tested without a GPU.
#pragma once
#include <cstddef>

namespace ferry {

struct LaunchExtent {
    unsigned x = 1, y = 1, z = 1;
    bool operator==(const LaunchExtent&) const = default;
};

struct LaunchShape {
    LaunchExtent grid, block;
    size_t shared_bytes = 0;  // dynamic shared memory, up to 227 KiB
    bool operator==(const LaunchShape&) const = default;
};

constexpr unsigned kMaxGridYZ = 65535;

// Dynamic shared memory that a kernel gets without asking: 48 KiB less what it declares itself, and
// what lies between the two.
constexpr size_t kUnaskedSharedBytes = 32 << 10;

}  // namespace ferry
