# The CUDA backend, compiled by nvcc (layers/CMakeLists.txt) and, for tests on the CPU, by the C++
# compiler (tests/support/cuda_emulation/CMakeLists.txt). Paths from the project's root.
set(FERRY_CUDA_SOURCES
    layers/cuda/cuda_kernels.cpp
    layers/cuda/elementwise.cu
    layers/cuda/latent_cache.cu
    layers/cuda/rms_norm.cu
    layers/cuda/rope.cu
    layers/cuda/step_arrays.cpp
    layers/cuda/unbuilt.cpp)
