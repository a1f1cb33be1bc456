#include "layers/cuda/cuda_kernels.h"

#include <algorithm>

#include "base/cuda_api.h"
#include "layers/batch.h"
#include "layers/cuda/sampling.h"
#include "layers/cuda/step_graphs.h"
#include "layers/cuda/tensor_parallel.h"

namespace ferry {

CudaKernels::CudaKernels(CudaDevice& device, int num_threads)
    : device_(device),
      info_(device.info()),
      threads_(num_threads),
      step_arrays_(device),
      upload_(device),
      cublas_(device) {
    int bytes = 0;
    check_cuda(
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.ordinal()),
        "ask for the size of shared memory");
    max_shared_bytes_ = bytes;
}
CudaKernels::~CudaKernels() = default;

void CudaKernels::begin_step(const StepBatch& batch) {
    device_.make_current();
    step_arrays_.on_device(batch.tokens);
    step_arrays_.on_device(batch.positions);
    step_arrays_.on_device(batch.slots);
    step_arrays_.on_device(batch.logit_rows);
    // Before the first decode its shape is not known; then it places its arrays itself.
    if (batch.generated.empty() || decode_shape_.heads == 0) return;
    const int64_t first_row =
        std::ranges::min(batch.generated, {}, &SequenceRows::first_row).first_row;
    place_decode(batch.generated, first_row, index_topk_);
    if (index_topk_ > 0 && form_.num_keys > index_topk_)
        place_selection(batch.generated, first_row);
}

std::unique_ptr<StepGraphs> CudaKernels::make_step_graphs(const ModelConfig& model) {
    keeps_scratch_ = true;
    index_topk_ = model.index_topk;
    return std::make_unique<CudaStepGraphs>(
        *this, decode_slot_limit({.heads = model.n_heads, .kv_lora = model.kv_lora_rank}));
}

std::unique_ptr<TensorParallel> CudaKernels::make_tensor_parallel(
    std::unique_ptr<TensorParallel> host, BlockTransport& blocks, std::vector<int> members,
    const TensorParallelSizes& sizes) {
    return std::make_unique<CudaTensorParallel>(*this, std::move(host), blocks, std::move(members),
                                                sizes);
}

void CudaKernels::fill_zero(const Tensor& y) {
    FERRY_CHECK(y.contiguous(), "y is {}", y.describe());
    const auto bytes = static_cast<size_t>(y.count() * size_bytes(y.dtype()));
    if (bytes > 0) check_cuda(cudaMemsetAsync(y.data(), 0, bytes, stream()), "clear memory");
}

std::unique_ptr<DeviceSampler> CudaKernels::make_sampler(int64_t vocab_size, int64_t max_rows) {
    return std::make_unique<CudaSampler>(device_, vocab_size, max_rows);
}

std::unique_ptr<Kernels> make_cuda_kernels(int ordinal, int num_threads) {
    return std::make_unique<CudaKernels>(cuda_device(ordinal), num_threads);
}

}  // namespace ferry
