// The sampler of one GPU (layers/sampling.h).
#pragma once
#include <vector>

#include "base/buffer.h"
#include "layers/cuda/sampling_launch.h"
#include "layers/sampling.h"

namespace ferry {

class CudaDevice;

class CudaSampler final : public DeviceSampler {
  public:
    // Allocates for `max_rows` inputs of a call; lists of tokens and of most likely tokens grow.
    CudaSampler(CudaDevice& device, int64_t vocab_size, int64_t max_rows);

    std::span<const SampledRow> sample(const Tensor& logits,
                                       std::span<const SampleRow> inputs) override;

  private:
    void prepare(std::span<const SampleRow> inputs);
    void reserve(std::span<const SampleRow> inputs);
    void run(const Tensor& logits);

    CudaDevice& device_;
    int64_t vocab_size_;
    // On the device, and what is copied from and to it in pinned memory.
    Buffer device_queries_, device_tokens_, device_results_, device_top_, adjusted_;
    Buffer pinned_queries_, pinned_tokens_, pinned_results_, pinned_top_;
    std::vector<SampleQuery> queries_;
    std::vector<int32_t> tokens_;
    std::vector<RankedLogprob> logprobs_;
    std::vector<SampledRow> sampled_;
};

}  // namespace ferry
