// What is asked of the engine and what comes back: plain values, nothing of files or batches.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

// How tokens are chosen; sampler.h gives the formulas. Names are those of the input's JSON fields.
struct SamplingParams {
    double temperature = 0;  // 0: greedy
    int64_t top_k = 0;       // 0: off
    double top_p = 1;        // 1: off
    double min_p = 0;        // 0: off
    double repetition_penalty = 1;
    uint64_t seed = 0;
    int64_t n = 1;  // samples of one prompt; each is a request of its own to the engine
    int64_t max_tokens = 128;
    int64_t min_tokens = 0;              // before these, no token that would stop may be chosen
    std::vector<std::string> stop = {};  // the text ends before the first; may be special tokens
    std::vector<int32_t> stop_token_ids = {};  // beside the model's end-of-sentence token
    bool ignore_eos = false;                   // end-of-sentence does not stop (stop_token_ids do)
    std::optional<int64_t> logprobs = {};  // of chosen tokens, and of this many most likely ones

    bool operator==(const SamplingParams&) const = default;
};

// A name in the user's words, given back as it came: a JSON string or a JSON integer.
struct RequestId {
    std::string text;
    bool is_number = false;

    bool operator==(const RequestId&) const = default;
};

// One sample of one input line; (index, sample) is unique in a run.
struct Request {
    int64_t index = 0;   // of the input line, from 0: the order of the output
    int64_t sample = 0;  // of sampling.n
    RequestId id;
    std::vector<int32_t> prompt_tokens;  // at least one
    SamplingParams sampling;
    std::string where = {};  // for messages: "prompts.jsonl:7"; empty: nowhere
};

enum class FinishReason { stop, length, error };
std::string_view to_string(FinishReason reason);

struct TokenLogprob {
    int32_t token = 0;
    float logprob = 0;

    bool operator==(const TokenLogprob&) const = default;
};

// Seconds since the engine took the request.
struct RequestTimings {
    double queue_s = 0;        // until its first token was in a step
    double first_token_s = 0;  // until its first token was chosen
    double total_s = 0;
};

struct Completion {
    int64_t index = 0;
    int64_t sample = 0;
    int64_t num_samples = 1;
    RequestId id;
    int64_t num_prompt_tokens = 0;
    std::string text;             // without stop string and special tokens
    std::vector<int32_t> tokens;  // all that were generated, those that stopped it included
    FinishReason finish_reason = FinishReason::error;
    std::string error;                       // one line, for FinishReason::error
    std::vector<float> logprobs;             // one per token when asked for, else empty
    int64_t num_top_logprobs = 0;            // per token
    std::vector<TokenLogprob> top_logprobs;  // [tokens * num_top_logprobs], most likely first
    RequestTimings timings;
};

// What is wrong with a request, and where it is.
std::string located(const Request& request, const std::string& error);
// A request that was refused.
Completion failed_completion(const Request& request, const std::string& error);

// One line of the output file, without the newline. Keys in fixed order; floats in the shortest
// form that reads back to the same bits:
//   {"id": "a", "sample": 0, "text": "...", "tokens": [5, 9], "finish_reason": "stop",
//    "error": "...", "num_prompt_tokens": 3,
//    "logprobs": [{"token": 5, "logprob": -0.25, "top": [[5, -0.25], [7, -2.5]]}, ...],
//    "timings": {"queue_s": 0.001, "first_token_s": 0.02, "total_s": 0.3}}
// `sample` is there when num_samples > 1, `error` and `logprobs` when there are any.
std::string to_json(const Completion& completion, bool with_timings);

// A JSON string literal; bytes that are no UTF-8 become U+FFFD.
std::string json_string(std::string_view text);

// The part of the sampler's random key that tells requests apart: 64-bit FNV-1a of the id's text,
// mixed.
uint64_t hash_request_id(std::string_view id_text);

}  // namespace ferry
