// The CUDA backend in a build without CUDA.
#include "base/device_cuda.h"
#include "layers/kernels.h"

namespace ferry {

std::unique_ptr<Kernels> make_cuda_kernels(int ordinal, int) {
    cuda_device(ordinal);  // throws: there is none
    return nullptr;
}

}  // namespace ferry
