#include "layers/cpu/cpu_kernels.h"

namespace ferry {

std::unique_ptr<Kernels> make_cpu_kernels(int num_threads) {
    return std::make_unique<CpuKernels>(num_threads);
}

}  // namespace ferry
