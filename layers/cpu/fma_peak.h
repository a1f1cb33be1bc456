// The f32 multiply-add rate that this machine reaches now, to set kernels against.
#pragma once
#include "base/thread_pool.h"

namespace ferry {

// FLOPs (two per multiply-add) of one burst of independent multiply-adds on the calling thread.
double fma_burst();

// Seconds of CPU time of the calling thread: what others run on a shared machine does not count.
double thread_cpu_seconds();

}  // namespace ferry
