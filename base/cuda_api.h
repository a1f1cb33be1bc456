// The one place that includes CUDA's headers (tests/check_layers). Only sources that are part of
// the CUDA build include it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace ferry {

// Throws Error with what was being done and CUDA's words: `memory` when memory ran out, else
// `communication`: the device does not do what it is told. what: "copy to the GPU".
void check_cuda(cudaError_t result, const char* what);

}  // namespace ferry
