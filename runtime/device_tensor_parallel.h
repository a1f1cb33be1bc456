// Tensor parallelism of kernels whose memory is a device's: a group of one stays on the device, a
// larger one exchanges rows through host memory.
#pragma once
#include "comm/tensor_parallel.h"
#include "layers/kernels.h"

namespace ferry {

// All tensors of the result's calls are the device's, of which `host` knows nothing. The sums and
// their order are the same.
std::unique_ptr<TensorParallel> make_device_tensor_parallel(std::unique_ptr<TensorParallel> host,
                                                            Kernels& kernels);

}  // namespace ferry
