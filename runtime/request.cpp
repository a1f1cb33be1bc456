#include "runtime/request.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/random.h"

namespace ferry {
namespace {

using Out = std::back_insert_iterator<std::string>;

void write_logprob(std::string& line, float logprob) {
    if (std::isfinite(logprob))
        fmt::format_to(Out(line), "{}", logprob);
    else
        line += "null";
}

void write_logprobs(std::string& line, const Completion& completion) {
    const size_t top = static_cast<size_t>(completion.num_top_logprobs);
    FERRY_CHECK(completion.logprobs.size() == completion.tokens.size() &&
                    completion.top_logprobs.size() == completion.tokens.size() * top,
                "{} tokens, {} log-probabilities, {} alternatives of {}", completion.tokens.size(),
                completion.logprobs.size(), completion.top_logprobs.size(), top);
    line += ", \"logprobs\": [";
    for (size_t i = 0; i < completion.tokens.size(); ++i) {
        fmt::format_to(Out(line), "{}{{\"token\": {}, \"logprob\": ", i == 0 ? "" : ", ",
                       completion.tokens[i]);
        write_logprob(line, completion.logprobs[i]);
        if (top > 0) line += ", \"top\": [";
        for (size_t j = 0; j < top; ++j) {
            const TokenLogprob& entry = completion.top_logprobs[i * top + j];
            fmt::format_to(Out(line), "{}[{}, ", j == 0 ? "" : ", ", entry.token);
            write_logprob(line, entry.logprob);
            line += "]";
        }
        line += top > 0 ? "]}" : "}";
    }
    line += "]";
}

}  // namespace

std::string_view to_string(FinishReason reason) {
    switch (reason) {
        case FinishReason::stop:
            return "stop";
        case FinishReason::length:
            return "length";
        case FinishReason::error:
            return "error";
    }
    return "?";
}

std::string located(const Request& request, const std::string& error) {
    const std::string start = request.where.empty() ? std::string() : request.where + ": ";
    return error.starts_with(start) ? error : start + error;
}

Completion failed_completion(const Request& request, const std::string& error) {
    Completion completion;
    completion.index = request.index;
    completion.sample = request.sample;
    completion.num_samples = request.sampling.n;
    completion.id = request.id;
    completion.num_prompt_tokens = static_cast<int64_t>(request.prompt_tokens.size());
    completion.finish_reason = FinishReason::error;
    completion.error = located(request, error);
    return completion;
}

std::string to_json(const Completion& completion, bool with_timings) {
    std::string line = "{\"id\": ";
    line += completion.id.is_number ? completion.id.text : json_string(completion.id.text);
    if (completion.num_samples > 1)
        fmt::format_to(Out(line), ", \"sample\": {}", completion.sample);
    fmt::format_to(Out(line), ", \"text\": {}, \"tokens\": [{}], \"finish_reason\": \"{}\"",
                   json_string(completion.text), fmt::join(completion.tokens, ", "),
                   to_string(completion.finish_reason));
    if (!completion.error.empty())
        fmt::format_to(Out(line), ", \"error\": {}", json_string(completion.error));
    fmt::format_to(Out(line), ", \"num_prompt_tokens\": {}", completion.num_prompt_tokens);
    if (!completion.logprobs.empty()) write_logprobs(line, completion);
    if (with_timings)
        fmt::format_to(Out(line),
                       ", \"timings\": {{\"queue_s\": {:.6f}, \"first_token_s\": {:.6f}, "
                       "\"total_s\": {:.6f}}}",
                       completion.timings.queue_s, completion.timings.first_token_s,
                       completion.timings.total_s);
    line += "}";
    return line;
}

std::string json_string(std::string_view text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

uint64_t hash_request_id(std::string_view id_text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : id_text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return mix64(hash);
}

}  // namespace ferry
