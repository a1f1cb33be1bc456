# The exchange of GPUs, compiled by nvcc (comm/CMakeLists.txt) and, for tests on the CPU, by the C++ compiler
# (tests/support/cuda_emulation/CMakeLists.txt). Paths from the project's root.
set(FERRY_COMM_CUDA_SOURCES
    comm/block_transport_self.cpp
    comm/exchange_device.cpp
    comm/exchange_kernels.cu)
