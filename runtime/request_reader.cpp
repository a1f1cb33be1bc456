#include "runtime/request_reader.h"

#include <algorithm>
#include <limits>

#include "base/log.h"
#include "runtime/config.h"
#include "runtime/json_text.h"
#include "runtime/spelling.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry {
namespace {

constexpr size_t kMaxNotes = 20;            // different ignored fields that are told
constexpr int64_t kMaxDuplicateNotes = 5;   // repeated ids that are told
constexpr size_t kMaxTrackedIds = 1 << 20;  // later ids are not looked at
constexpr size_t kShortestMisspelling = 5;  // shorter unknown fields are the user's own
constexpr size_t kLettersPerMistake = 4;    // and those further from any of ours

// Names of the same things elsewhere; passing over them would surprise.
struct Foreign {
    std::string_view key;
    std::string_view instead;
};
constexpr Foreign kForeign[] = {
    {"max_new_tokens", "max_tokens"},
    {"max_completion_tokens", "max_tokens"},
    {"min_new_tokens", "min_tokens"},
    {"input_ids", "prompt_tokens"},
    {"token_ids", "prompt_tokens"},
    {"prompt_token_ids", "prompt_tokens"},
    {"stop_strings", "stop"},
    {"top_logprobs", "logprobs"},
    {"best_of", "n"},
    {"num_return_sequences", "n"},
    {"do_sample", "temperature"},
};

[[noreturn]] void bad(const std::string& what) {
    throw Error(ErrorKind::input, what);
}

// The settings of a request are checked as those of the configuration.
YamlValue to_yaml_value(const Json& json) {
    YamlValue value;
    if (json.is_null()) return value;
    if (json.is_array()) {
        value.kind = YamlValue::Kind::sequence;
        for (const Json& item : json) value.items.push_back(to_yaml_value(item));
    } else if (json.is_object()) {
        value.kind = YamlValue::Kind::mapping;
    } else {
        value.kind = YamlValue::Kind::scalar;
        value.quoted = json.is_string();
        value.text = json.is_string() ? json.get<std::string>() : json.dump();
    }
    return value;
}

// A field that is null is as left out; only logprobs: null says something.
template <typename AnyJson>
void drop_nulls(AnyJson& object) {
    for (auto entry = object.begin(); entry != object.end();)
        entry =
            entry->is_null() && entry.key() != "logprobs" ? object.erase(entry) : std::next(entry);
}

RequestId read_id(const Json& json) {
    if (json.is_string()) return {json.get<std::string>(), false};
    if (json.is_number_integer()) return {json.dump(), true};
    bad("id: must be a string or an integer");
}

std::vector<int32_t> read_tokens(const Json& json) {
    if (!json.is_array()) bad("prompt_tokens: must be a list of token ids");
    std::vector<int32_t> tokens;
    tokens.reserve(json.size());
    for (const Json& item : json) {
        if (!item.is_number_integer() || item.get<double>() < 0 ||
            item.get<double>() > std::numeric_limits<int32_t>::max())
            bad(fmt::format("prompt_tokens: must be a list of token ids; entry {} is {}",
                            tokens.size(), in_quotes(item.is_structured() ? "..." : item.dump())));
        tokens.push_back(item.get<int32_t>());
    }
    return tokens;
}

// What a chat template sees beside the messages.
constexpr const char* kTools = "tools";
constexpr const char* kTemplateVariables = "chat_template_kwargs";

// Mappings keep the order of the line, as in Transformers: templates print them.
std::vector<int32_t> render_messages(std::string_view line, const PromptEncoder& encoder) {
    using OrderedJson = nlohmann::ordered_json;
    OrderedJson object = OrderedJson::parse(line);
    drop_nulls(object);
    OrderedJson variables = object.value(kTemplateVariables, OrderedJson::object());
    if (object.contains(kTools)) variables[kTools] = object[kTools];
    return encoder.encode_messages(object["messages"].dump(), variables.dump());
}

// A content may be a list of texts.
void check_content(const Json& content) {
    if (!content.is_array()) return;
    for (const Json& part : content) {
        const Json type = part.is_object() ? part.value("type", Json()) : Json();
        if (!type.is_string())
            bad("messages: a content that is a list must hold {\"type\": \"text\", \"text\": ...}");
        if (type != "text")
            bad(fmt::format("messages: a content holds {}; only text is taken",
                            in_quotes(type.get_ref<const std::string&>())));
        if (!part.value("text", Json()).is_string())
            bad("messages: a part of a content has the type \"text\" and no \"text\" that is a "
                "string");
    }
}

std::vector<int32_t> read_messages(const Json& object, std::string_view line,
                                   const PromptEncoder& encoder) {
    if (!encoder.encode_text) bad("messages: this model has no tokenizer; use prompt_tokens");
    if (!encoder.encode_messages)
        bad("messages: this model has no chat template; set model.chat_template");
    const Json& messages = object["messages"];
    if (!messages.is_array() || messages.empty()) bad("messages: must be a list of messages");
    for (const Json& message : messages) {
        if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
            bad("messages: every message must be an object with a \"role\"");
        check_content(message.value("content", Json()));
    }
    const Json tools = object.value(kTools, Json()),
               variables = object.value(kTemplateVariables, Json::object());
    if (!tools.is_null() && !tools.is_array()) bad("tools: must be a list of tools");
    if (!variables.is_object()) bad("chat_template_kwargs: must be an object");
    for (const char* own : {"messages", kTools, "add_generation_prompt"})
        if (variables.contains(own))
            bad(fmt::format("chat_template_kwargs: {} is no variable to set", own));
    try {
        return render_messages(line, encoder);
    } catch (const Error& error) {
        bad(fmt::format("messages: the model's chat template cannot render them: {}",
                        error.what()));
    }
}

std::vector<int32_t> read_text(const Json& json, const PromptEncoder& encoder) {
    if (!encoder.encode_text) bad("prompt: this model has no tokenizer; use prompt_tokens");
    if (!json.is_string()) bad("prompt: must be a string");
    return encoder.encode_text(json.get_ref<const std::string&>());
}

// `object`: what `line` holds.
std::vector<int32_t> read_prompt(const Json& object, std::string_view line,
                                 const PromptEncoder& encoder) {
    const char* kinds[] = {"prompt", "prompt_tokens", "messages"};
    const auto num = std::count_if(std::begin(kinds), std::end(kinds),
                                   [&](const char* kind) { return object.contains(kind); });
    if (num != 1)
        bad(fmt::format("{} of \"prompt\", \"prompt_tokens\", \"messages\"; exactly one is needed",
                        num == 0 ? "has none" : "has several"));
    if (object.contains("messages")) return read_messages(object, line, encoder);
    for (const char* of_chats : {kTools, kTemplateVariables})
        if (object.contains(of_chats)) bad(fmt::format("{}: goes with messages only", of_chats));
    if (object.contains("prompt")) return read_text(object["prompt"], encoder);
    return read_tokens(object["prompt_tokens"]);
}

// The field that an unknown one looks like and that the line lacks; empty: it is the user's own.
std::string meant_by(const std::string& key, const Json& object,
                     std::span<const std::string> known_keys) {
    if (key.size() < kShortestMisspelling) return {};
    const std::string nearest = nearest_spelling(key, known_keys);
    const bool is_near = edit_distance(key, nearest) <= key.size() / kLettersPerMistake;
    return is_near && !object.contains(nearest) ? nearest : std::string();
}

void check_tokens(const std::vector<int32_t>& tokens, int64_t vocab_size) {
    if (tokens.empty()) bad("the prompt has no tokens");
    if (vocab_size == 0) return;
    for (const int32_t token : tokens)
        if (token >= vocab_size)
            bad(fmt::format("token {} is outside the model's vocabulary of {}", token, vocab_size));
}

}  // namespace

RequestParser::RequestParser(std::string name, SamplingParams defaults, PromptEncoder encoder)
    : name_(std::move(name)),
      defaults_(std::move(defaults)),
      encoder_(std::move(encoder)),
      params_fields_(sampling_fields(params_)),
      known_keys_{"id", "prompt", "prompt_tokens", "messages", kTools, kTemplateVariables} {
    for (const Field& field : params_fields_) known_keys_.push_back(field.key);
}

RequestLine RequestParser::parse(std::string_view text, int64_t line_number) {
    Request request = request_of(line_number);
    const std::string& where = request.where;
    try {
        if (text.substr(std::min(text.find_first_not_of(" \t"), text.size())).starts_with('['))
            bad("must be a JSON object, one in each line, and is a list; jq -c '.[]' takes a list "
                "apart");
        Json object = parse_json(text, where);
        if (!object.is_object()) bad(where + ": must be a JSON object");
        drop_nulls(object);
        if (object.contains("id")) request.id = read_id(object["id"]);
        params_ = defaults_;
        for (const auto& entry : object.items()) {
            const std::string& key = entry.key();
            const auto field = std::find_if(params_fields_.begin(), params_fields_.end(),
                                            [&](const Field& f) { return f.key == key; });
            if (field != params_fields_.end())
                assign(*field, to_yaml_value(entry.value()), where, ErrorKind::input);
            else if (std::find(known_keys_.begin(), known_keys_.end(), key) == known_keys_.end())
                note_unknown(key, meant_by(key, object, known_keys_), line_number);
        }
        if (params_.min_tokens > params_.max_tokens) bad("min_tokens is more than max_tokens");
        request.sampling = params_;
        request.prompt_tokens = read_prompt(object, text, encoder_);
        check_tokens(request.prompt_tokens, encoder_.vocab_size);
    } catch (const Error& error) {
        return fail(std::move(request), error.what());
    }
    return finish(std::move(request), line_number);
}

RequestLine RequestParser::from_prompt(std::string_view prompt, int64_t line_number) {
    Request request = request_of(line_number);
    request.sampling = defaults_;
    try {
        if (!tok::is_valid_utf8(prompt)) bad("prompt: is not UTF-8");
        request.prompt_tokens = read_text(Json(std::string(prompt)), encoder_);
        check_tokens(request.prompt_tokens, encoder_.vocab_size);
    } catch (const Error& error) {
        return fail(std::move(request), error.what());
    }
    return finish(std::move(request), line_number);
}

RequestLine RequestParser::too_long(int64_t line_number) {
    return fail(request_of(line_number), "the line is too long");
}

Request RequestParser::request_of(int64_t line_number) const {
    Request request;
    request.index = line_number - 1;
    request.id = {std::to_string(line_number), true};
    request.where = fmt::format("{}:{}", name_, line_number);
    return request;
}

RequestLine RequestParser::fail(Request request, const std::string& what) {
    request.sampling.n = 1;
    RequestLine line;
    line.index = request.index;
    line.failed = failed_completion(request, what);
    log_error("{}", line.failed->error);
    return line;
}

RequestLine RequestParser::finish(Request request, int64_t line_number) {
    note_duplicate(request.id, line_number);
    RequestLine line;
    line.index = request.index;
    line.requests.assign(static_cast<size_t>(request.sampling.n), request);
    for (size_t i = 0; i < line.requests.size(); ++i)
        line.requests[i].sample = static_cast<int64_t>(i);
    return line;
}

void RequestParser::note_unknown(const std::string& key, const std::string& meant,
                                 int64_t line_number) {
    for (const Foreign& foreign : kForeign)
        if (key == foreign.key) bad(fmt::format("{}: no such field; use {}", key, foreign.instead));
    if (!meant.empty())
        bad(fmt::format("{}: no such field; did you mean {}?", in_quotes(key), meant));
    if (noted_.size() >= kMaxNotes || !noted_.insert(key).second) return;
    log_warn("{}:{}: field {} is passed over, here and in other lines", name_, line_number,
             in_quotes(key));
}

// The same id twice is allowed, but its samples repeat each other when seed and prompt do.
void RequestParser::note_duplicate(const RequestId& id, int64_t line_number) {
    if (id_hashes_.size() >= kMaxTrackedIds) return;
    if (id_hashes_.insert(hash_request_id(id.text)).second) return;
    if (++num_duplicates_ <= kMaxDuplicateNotes)
        log_warn("{}:{}: id {} was there before{}", name_, line_number, in_quotes(id.text),
                 num_duplicates_ == kMaxDuplicateNotes ? "; further ones are not told" : "");
}

namespace {

class JsonlReader : public RequestReader {
  public:
    JsonlReader(const std::string& path, const SamplingParams& defaults, PromptEncoder encoder)
        : lines_(path), parser_(lines_.name(), defaults, std::move(encoder)) {}

    bool next(RequestLine& line) override {
        TextLine text;
        if (!next_text(text)) return false;
        line =
            text.too_long ? parser_.too_long(text.number) : parser_.parse(text.text, text.number);
        return true;
    }
    bool skip() override {
        TextLine text;
        return next_text(text);
    }
    bool ready() override { return lines_.ready(); }

  private:
    // The next line that is not blank.
    bool next_text(TextLine& text) {
        do {
            if (!lines_.next(text)) return false;
            if (text.number == 1) refuse_compressed(lines_.name(), text.text);
            if (text.number == 1 && text.text.starts_with(kByteOrderMark))
                text.text.remove_prefix(kByteOrderMark.size());
        } while (is_blank(text.text));
        return true;
    }

    static constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
    LineReader lines_;
    RequestParser parser_;
};

class PromptReader : public RequestReader {
  public:
    PromptReader(std::vector<std::string> prompts, const SamplingParams& defaults,
                 PromptEncoder encoder)
        : prompts_(std::move(prompts)), parser_("prompt", defaults, std::move(encoder)) {}

    bool next(RequestLine& line) override {
        if (num_read_ == prompts_.size()) return false;
        line = parser_.from_prompt(prompts_[num_read_], static_cast<int64_t>(num_read_ + 1));
        ++num_read_;
        return true;
    }
    bool skip() override {
        if (num_read_ == prompts_.size()) return false;
        ++num_read_;
        return true;
    }

  private:
    std::vector<std::string> prompts_;
    RequestParser parser_;
    size_t num_read_ = 0;
};

}  // namespace

std::unique_ptr<RequestReader> read_jsonl(const std::string& path, const SamplingParams& defaults,
                                          PromptEncoder encoder) {
    return std::make_unique<JsonlReader>(path, defaults, std::move(encoder));
}

std::unique_ptr<RequestReader> read_prompts(std::vector<std::string> prompts,
                                            const SamplingParams& defaults, PromptEncoder encoder) {
    return std::make_unique<PromptReader>(std::move(prompts), defaults, std::move(encoder));
}

}  // namespace ferry
