// How kernels are launched: launch(kernel, shape, stream, arguments...). Never
// <<<>>>, so that every CUDA source is plain C++ as well (tests/support/cuda_emulation).
#pragma once
#include <utility>

#include "base/cuda_api.h"
#include "base/launch_shape.h"

namespace ferry {

// Throws Error with the kernel's name and what it was launched with.
[[noreturn]] void refuse_launch(cudaError_t result, const void* kernel, const LaunchShape& shape);

// Lets `kernel` have that much dynamic shared memory on the current device. What it was allowed
// before stays allowed: graphs hold launches that need it.
cudaError_t allow_shared_memory(const void* kernel, size_t bytes);

// Whether kernels that are launched early (launch_early) begin before the ones before them are
// done: on the GPUs that wait_for_earlier_kernels is compiled for.
bool kernels_start_early();

template <typename... Params, typename... Args>
void launch_as(bool early, void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
               Args&&... args) {
    cudaError_t result = cudaSuccess;
    if (shape.shared_bytes > kUnaskedSharedBytes)
        result = allow_shared_memory(reinterpret_cast<const void*>(kernel), shape.shared_bytes);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
    config.blockDim = dim3(shape.block.x, shape.block.y, shape.block.z);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    if (early && kernels_start_early()) {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
    if (result != cudaSuccess) refuse_launch(result, reinterpret_cast<const void*>(kernel), shape);
}

// Arguments are converted to the kernel's parameters and copied. Throws Error when CUDA refuses.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            Args&&... args) {
    launch_as(false, kernel, shape, stream, std::forward<Args>(args)...);
}

// A kernel all of whose threads call wait_for_earlier_kernels before they touch what other kernels
// of a step write or read: what it does before that overlaps with the end of the kernel before it.
template <typename... Params, typename... Args>
void launch_early(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                  Args&&... args) {
    launch_as(true, kernel, shape, stream, std::forward<Args>(args)...);
}

#ifdef __CUDACC__
// Returns when all kernels given to the stream before are done and what they wrote can be read.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel, if it is launched early, may begin once all blocks have come here or ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#else  // emulated: one kernel after the other
inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}
#endif

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
