// Tensor parallelism of kernels whose memory is a device's. A group of one stays on the device. A
// larger one does where GPUs exchange rows themselves, else it goes through host memory.
#pragma once
#include "comm/block_transport.h"
#include "comm/tensor_parallel.h"
#include "layers/kernels.h"
#include "runtime/rank_fabric.h"

namespace ferry {

// All tensors of the result's calls are the device's, of which `host` knows nothing. The sums and
// their order are the same. `members`: of the group, as Layout::tp_members() has them.
std::unique_ptr<TensorParallel> make_device_tensor_parallel(std::unique_ptr<TensorParallel> host,
                                                            Kernels& kernels,
                                                            const FabricOptions& options,
                                                            std::vector<int> members,
                                                            const ModelConfig& model);

// What a group between GPUs is made for.
TensorParallelSizes tensor_parallel_sizes(const FabricOptions& options, const ModelConfig& model);

}  // namespace ferry
