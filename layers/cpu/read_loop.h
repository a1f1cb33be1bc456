// The rate at which this machine reads memory now, to set kernels against.
#pragma once
#include "base/thread_pool.h"

namespace ferry {

// Reads every byte once, in pieces of 1 MiB that the threads claim in order.
void read_all(ThreadPool& threads, const void* data, size_t size_bytes);

}  // namespace ferry
