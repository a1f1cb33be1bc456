// Tokens from logits that lie on a device whose memory the host cannot read: the same tokens, ids
// and log-probabilities that runtime/sampler.h gives for the same logits. Only they are copied to
// the host.
#pragma once
#include <cstdint>
#include <span>

#include "base/tensor.h"

namespace ferry {

// How the token of one row of logits is chosen. Names are those of SamplingParams.
struct SampleRow {
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

struct RankedLogprob {
    int32_t token = -1;
    float logprob = 0;
};

struct SampledRow {
    int32_t token = -1;                       // -1: the logits have NaN or no finite maximum
    float logprob = 0;                        // when num_top >= 0
    std::span<const RankedLogprob> top = {};  // valid until the next call
};

class DeviceSampler {
  public:
    virtual ~DeviceSampler() = default;
    // logits: [rows, vocab] f32 on the device. One result per input, valid until the next call.
    // Waits for the device.
    virtual std::span<const SampledRow> sample(const Tensor& logits,
                                               std::span<const SampleRow> inputs) = 0;
};

}  // namespace ferry
