// [14] From a row of logits to a token. Depends on its input only, never on the batch; every sum
// has a fixed order, and no function of the C library that may differ decides a choice.
//
// Order of work, on l = logits in f32:
//   1. banned tokens: l = -inf.
//   2. repetition_penalty r, once for each distinct token of prompt and output:
//      l > 0 ? l / r : l * r (Keskar et al. 2019, CTRL).
//   3. temperature below 1e-5 (0 is "greedy"): the highest l.
//   4. else weight w = exp((l - max l) / temperature), so the best token has weight 1. Tokens are
//      ranked by l; a token is kept while its rank is below top_k, w >= min_p, and the weights of
//      better ranks sum to less than top_p of all (of the top_k, when that is set too). The best
//      token is always kept.
//   5. drawn from the kept tokens in proportion to w: the first in order of id where the sum
//      of w exceeds u * total. u has 53 bits, of Philox4x32-10 with key = seed and counter =
//      (number of generated tokens before, sample, hash_request_id(id)).
// Sums of w are exact, in whole units of 2^-40 (layers/sampling_math.h), so that a GPU which adds
// in another order (layers/cuda/sampling.h) chooses the same tokens.
// So a filter that removes nothing changes nothing. Ties, everywhere, go to the lower id.
//
// Log-probabilities are the model's own: l - max l - log(sum exp(l - max l)) of the logits as they
// came, before steps 1 to 5.
#pragma once
#include <span>
#include <vector>

#include "runtime/request.h"

namespace ferry {

struct SampleInput {
    std::span<const float> logits;  // [vocab]
    const SamplingParams& params;
    uint64_t id_hash = 0;  // hash_request_id(request.id.text)
    int64_t sample = 0;
    std::span<const int32_t> tokens = {};  // prompt, then what was generated so far
    int64_t num_prompt_tokens = 0;
    std::span<const int32_t> banned =
        {};  // the tokens that would stop, while min_tokens forbids it
};

struct SampledToken {
    int32_t token = -1;  // -1: the logits have NaN or no finite maximum, nothing can be chosen
    float logprob = 0;   // when params.logprobs is set
    std::span<const TokenLogprob> top;  // params.logprobs entries; valid until the next call
};

class Sampler {
  public:
    // Allocates all that `sample` ever needs.
    explicit Sampler(int64_t vocab_size);

    SampledToken sample(const SampleInput& input);

  private:
    struct Ranked {
        float logit;
        int32_t id;
    };
    struct Kept {
        int32_t id;
        float weight;
        uint64_t units;
    };
    std::span<const float> adjusted_logits(const SampleInput& input);
    int32_t draw(const SampleInput& input, std::span<const float> logits, float max_logit);
    void keep_by_rank(const SampleInput& input, std::span<const float> logits, float max_logit);
    void add_logprobs(const SampleInput& input, float max_logit, SampledToken& result);

    // After `rank`, each `next_ranked` gives the next id by falling logit: a heap holds the best
    // one left of every block of ids, so that a few cost little more than reading the row.
    static bool ranks_lower(const Ranked& a, const Ranked& b);
    void rank(std::span<const float> logits);
    int32_t next_ranked();
    std::span<const float> block_of(int64_t id) const;

    int64_t vocab_size_;
    std::vector<float> adjusted_;       // [vocab]
    std::vector<float> weights_;        // [vocab]
    std::vector<uint32_t> seen_epoch_;  // [vocab]: which call last penalised the token
    uint32_t epoch_ = 0;
    std::span<const float> ranked_;
    std::vector<Ranked> heap_;
    std::vector<Kept> kept_;
    std::vector<TokenLogprob> top_;
};

}  // namespace ferry
