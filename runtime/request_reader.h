// [9] Requests from JSONL or from texts, one line at a time, in order. A bad line is no end of the
// job: it becomes a failed completion that says what is wrong with it.
//
// A line is a JSON object with exactly one of
//   "prompt": "text"   "prompt_tokens": [1, 2]   "messages": [{"role": "user", "content": "text"}]
// and, as wanted, "id" (a string or an integer; default: the line's number) and the sampling fields
// of `ferry config --help` (temperature, top_k, top_p, min_p, repetition_penalty, seed, n,
// max_tokens, min_tokens, stop, stop_token_ids, ignore_eos, logprobs), which replace the
// configuration's. Other fields are passed over with one warning each, unless they look like a
// misspelling: then the line is bad. A field that is null is as left out (logprobs: none). Blank
// lines are passed over.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "runtime/fields.h"
#include "runtime/line_reader.h"
#include "runtime/request.h"

namespace ferry {

// Text to tokens. A function that is missing refuses its kind of prompt.
struct PromptEncoder {
    std::function<std::vector<int32_t>(std::string_view text)> encode_text;
    // A JSON list, and a JSON object of further variables of the chat template.
    std::function<std::vector<int32_t>(const std::string& messages, const std::string& variables)>
        encode_messages;
    int64_t vocab_size = 0;  // of the model: higher ids are refused; 0: not checked
};

// What one line asks for: sampling.n requests, or the reason why there are none.
struct RequestLine {
    int64_t index = 0;
    std::vector<Request> requests;
    std::optional<Completion> failed;
};

// One line's text; `name` stands for the file. Throws nothing of the user's making.
class RequestParser {
  public:
    RequestParser(std::string name, SamplingParams defaults, PromptEncoder encoder);
    RequestParser(const RequestParser&) = delete;
    RequestParser& operator=(const RequestParser&) = delete;

    RequestLine parse(std::string_view text, int64_t line_number);
    // A request for a text that is no JSON line.
    RequestLine from_prompt(std::string_view prompt, int64_t line_number);

    // A line of more bytes than the reader takes.
    RequestLine too_long(int64_t line_number);

  private:
    Request request_of(int64_t line_number) const;  // before the line is read
    static RequestLine fail(Request request, const std::string& what);
    RequestLine finish(Request request, int64_t line_number);
    void note_unknown(const std::string& key, const std::string& meant, int64_t line_number);
    void note_duplicate(const RequestId& id, int64_t line_number);

    std::string name_;
    SamplingParams defaults_;
    PromptEncoder encoder_;
    SamplingParams params_;             // of the line being read
    std::vector<Field> params_fields_;  // bound to params_
    std::vector<std::string> known_keys_;
    std::set<std::string> noted_;
    std::unordered_set<uint64_t> id_hashes_;
    int64_t num_duplicates_ = 0;
};

class RequestReader {
  public:
    virtual ~RequestReader() = default;
    // False when there are no more.
    virtual bool next(RequestLine& line) = 0;
    // Passes over one line without looking into it; false when there are no more.
    virtual bool skip() = 0;
    // The next line has arrived already (in a benchmark it may lie in the future).
    virtual bool ready() { return true; }
    // All have.
    virtual bool all_ready() { return true; }
};

// Throws Error(input) when the file cannot be read, then and in next().
std::unique_ptr<RequestReader> read_jsonl(const std::string& path, const SamplingParams& defaults,
                                          PromptEncoder encoder);
// Ids are 1, 2, ….
std::unique_ptr<RequestReader> read_prompts(std::vector<std::string> prompts,
                                            const SamplingParams& defaults, PromptEncoder encoder);

}  // namespace ferry
