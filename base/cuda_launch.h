// How kernels are launched: launch(kernel, shape, stream, arguments...). Never
// <<<>>>, so that every CUDA source is plain C++ as well (tests/support/cuda_emulation).
#pragma once
#include "base/cuda_api.h"
#include "base/launch_shape.h"

namespace ferry {

// Throws Error with the kernel's name and what it was launched with.
[[noreturn]] void refuse_launch(cudaError_t result, const void* kernel, const LaunchShape& shape);

// Arguments are converted to the kernel's parameters and copied. Throws Error when CUDA refuses.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            Args&&... args) {
    cudaError_t result = cudaSuccess;
    if (shape.shared_bytes > kUnaskedSharedBytes)
        result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
    config.blockDim = dim3(shape.block.x, shape.block.y, shape.block.z);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
    if (result != cudaSuccess) refuse_launch(result, reinterpret_cast<const void*>(kernel), shape);
}

}  // namespace ferry

// FERRY_DYNAMIC_SHARED(name): `std::byte* name` is the block's dynamic shared memory, 1 KiB
// aligned.
#ifdef __CUDACC__
#define FERRY_DYNAMIC_SHARED(name)                                   \
    extern __shared__ __align__(1024) unsigned char name##_memory[]; \
    std::byte* const name = reinterpret_cast<std::byte*>(name##_memory)
#else
#define FERRY_DYNAMIC_SHARED(name) \
    std::byte* const name = static_cast<std::byte*>(::cuda_emulation::dynamic_shared_memory())
#endif
