// The sampling kernel as the host sees it. Includes neither CUDA's headers nor heavy ones of the
// host.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace ferry {

constexpr int kSampleThreads = 512;  // a block has one row of logits
constexpr int kSampleDigitBits = 11;
constexpr int kSampleDigits = 1 << kSampleDigitBits;

// How the token of one row is chosen; runtime/sampler.h has the formulas.
struct SampleQuery {
    int64_t row = 0;  // of the logits
    uint64_t seed = 0;
    uint64_t id_hash = 0;
    double top_p = 1, min_p = 0;
    uint32_t sample = 0;
    uint32_t position = 0;      // number of generated tokens before
    float per_temperature = 0;  // 0: greedy
    float repetition_penalty = 1;
    int32_t top_k = 0;
    int32_t num_top = -1;      // most likely tokens wanted; -1: no log-probabilities at all
    int64_t first_token = 0;   // into the list of tokens: prompt and output, for the penalty
    int64_t first_banned = 0;  // into the same list
    int32_t num_tokens = 0, num_banned = 0;
    int64_t first_top = 0;  // into the results' most likely tokens
};

struct RankedToken {
    int32_t token = -1;
    float logit = 0;
};

// Log-probabilities are finished on the host: logit - max_logit - log(units).
struct SampleResult {
    int32_t token = -1;
    float logit = 0;      // of the token, as it came
    float max_logit = 0;  // of the logits as they came
    uint32_t unused = 0;
    uint64_t units = 0;  // sum of exp(l - max l), when num_top >= 0
};

struct SampleParams {
    const float* logits = nullptr;  // [rows, vocab]
    int64_t logits_stride = 0;
    int64_t vocab = 0;
    const SampleQuery* queries = nullptr;
    const int32_t* tokens = nullptr;  // of all queries
    float* adjusted = nullptr;        // [queries, vocab], where there are penalties or bans
    SampleResult* results = nullptr;
    RankedToken* top = nullptr;  // of all queries
};

void launch_sample(const SampleParams& params, int num_queries, CUstream_st* stream);

}  // namespace ferry
