// Counts every `operator new` of the process, to test that hot paths never allocate. A test program
// that uses it links tests/support/allocation_count.cpp.
#pragma once
#include <cstdint>

namespace ferry {

int64_t num_allocations();

}  // namespace ferry
