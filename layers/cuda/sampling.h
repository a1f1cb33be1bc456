// Tokens from logits that lie on the GPU: the same tokens, ids and log-probabilities that
// runtime/sampler.h gives for the same logits. Only they are copied to the host.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "layers/cuda/sampling_launch.h"

namespace ferry {

class CudaDevice;

// One row of logits. Names are those of SamplingParams.
struct CudaSampleInput {
    int64_t row = 0;
    double temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
    int64_t top_k = 0;
    uint64_t seed = 0;
    uint64_t id_hash = 0;
    int64_t sample = 0;
    std::span<const int32_t> tokens = {};  // prompt, then what was generated so far
    int64_t num_prompt_tokens = 0;
    std::span<const int32_t> banned = {};
    int64_t num_top = -1;  // most likely tokens wanted; -1: no log-probabilities
};

struct CudaTokenLogprob {
    int32_t token = -1;
    float logprob = 0;
};

struct CudaSampledToken {
    int32_t token = -1;                          // -1: the logits have NaN or no finite maximum
    float logprob = 0;                           // when num_top >= 0
    std::span<const CudaTokenLogprob> top = {};  // valid until the next call
};

class CudaSampler {
  public:
    // Allocates for `max_rows` inputs of a call; lists of tokens and of most likely tokens grow.
    CudaSampler(CudaDevice& device, int64_t vocab_size, int64_t max_rows);

    // logits: [rows, vocab] f32 on the device. One result per input. Waits for the device.
    std::span<const CudaSampledToken> sample(const Tensor& logits,
                                             std::span<const CudaSampleInput> inputs);

  private:
    void prepare(std::span<const CudaSampleInput> inputs);
    void reserve(std::span<const CudaSampleInput> inputs);
    void run(const Tensor& logits);

    CudaDevice& device_;
    int64_t vocab_size_;
    // On the device, and what is copied from and to it in pinned memory.
    Buffer device_queries_, device_tokens_, device_results_, device_top_, adjusted_;
    Buffer pinned_queries_, pinned_tokens_, pinned_results_, pinned_top_;
    std::vector<SampleQuery> queries_;
    std::vector<int32_t> tokens_;
    std::vector<CudaTokenLogprob> logprobs_;
    std::vector<CudaSampledToken> sampled_;
};

}  // namespace ferry
