#include "layers/cpu/cpu_kernels.h"

#include "base/error.h"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/highway.h>

namespace ferry {
namespace {

// Asked before anyone (a test) can restrict them.
const int64_t kCpuTargets = hwy::SupportedTargets();

}  // namespace

void check_vector_instructions(int64_t highway_targets) {
    constexpr int64_t kUsable = HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL | HWY_NEON;
    if ((highway_targets & kUsable) == 0)
        throw Error(ErrorKind::usage,
                    "this CPU has neither AVX2 with FMA nor NEON, which the CPU kernels need; run "
                    "on a newer machine (x86: Intel Haswell or AMD Zen and later)");
}

std::unique_ptr<Kernels> make_cpu_kernels(int num_threads, const CpuOptions& options) {
    check_vector_instructions(kCpuTargets);
    return std::make_unique<CpuKernels>(num_threads, options);
}

}  // namespace ferry
