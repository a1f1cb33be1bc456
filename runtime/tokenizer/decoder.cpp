#include "runtime/tokenizer/decoder.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"

namespace ferry::tok {
namespace {

Decoder make_sequence(const Json& json, const Where& where) {
    std::vector<Decoder> parts;
    for (const Json& part : need_array(json, "decoders", where)) {
        parts.push_back(make_decoder(part, where.at("decoders", parts.size())));
    }
    return [parts](std::vector<std::string>* tokens) {
        for (const Decoder& part : parts) part(tokens);
    };
}

void decode_byte_level(std::vector<std::string>* tokens) {
    std::string bytes, text;
    for (const std::string& token : *tokens) append_token_bytes(token, &bytes);
    append_utf8_lossy(bytes, true, &text);
    tokens->assign(1, text);
}

// The byte of a token such as "<0x0A>".
std::optional<char> read_byte_token(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    unsigned byte = 0;
    const auto result = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
    if (result.ec != std::errc() || result.ptr != token.data() + 5) return std::nullopt;
    return char(byte);
}

// A run of byte tokens becomes its text, or one U+FFFD per byte when it is not UTF-8 as a whole.
void decode_byte_fallback(std::vector<std::string>* tokens) {
    std::vector<std::string> result;
    std::string run;
    const auto end_run = [&] {
        if (run.empty()) return;
        if (is_valid_utf8(run)) {
            result.push_back(run);
        } else {
            result.insert(result.end(), run.size(), "\uFFFD");
        }
        run.clear();
    };
    for (std::string& token : *tokens) {
        if (const std::optional<char> byte = read_byte_token(token)) {
            run.push_back(*byte);
        } else {
            end_run();
            result.push_back(std::move(token));
        }
    }
    end_run();
    *tokens = std::move(result);
}

void fuse(std::vector<std::string>* tokens) {
    std::string all;
    for (const std::string& token : *tokens) all += token;
    tokens->assign(1, all);
}

Decoder make_replace(const Json& json, const Where& where) {
    const Regex pattern = read_pattern(json, where);
    const std::string content = need_string(json, "content", where);
    return [pattern, content](std::vector<std::string>* tokens) {
        for (std::string& token : *tokens) token = replace_all(pattern, token, content);
    };
}

Decoder make_strip(const Json& json, const Where& where) {
    const std::string content = need_string(json, "content", where);
    if (content.empty()) where.fail("'content' is empty");
    const int64_t start = need_int(json, "start", 0, 1 << 20, where);
    const int64_t stop = need_int(json, "stop", 0, 1 << 20, where);
    return [content, start, stop](std::vector<std::string>* tokens) {
        for (std::string& token : *tokens) {
            std::string_view kept = token;
            for (int64_t i = 0; i < start && kept.starts_with(content); ++i) {
                kept.remove_prefix(content.size());
            }
            for (int64_t i = 0; i < stop && kept.ends_with(content); ++i) {
                kept.remove_suffix(content.size());
            }
            token = std::string(kept);
        }
    };
}

Decoder make_metaspace(const Json& json, const Where& where) {
    const std::string mark = need_string(json, "replacement", where);
    const Regex pattern(Regex::escape(mark), where.text());
    const bool add_prefix = get_bool(json, "add_prefix_space", true, where);  // older files
    const std::string scheme =
        get_string(json, "prepend_scheme", add_prefix ? "always" : "never", where);
    const std::string_view first_space = scheme == "never" ? " " : "";
    return [pattern, first_space](std::vector<std::string>* tokens) {
        std::string_view space = first_space;
        for (std::string& token : *tokens) {
            token = replace_all(pattern, token, space);
            space = " ";
        }
    };
}

}  // namespace

Decoder make_decoder(const Json& json, const Where& where) {
    const std::string type = component_type(json, where);
    if (type == "Sequence") return make_sequence(json, where);
    if (type == "ByteLevel") return decode_byte_level;
    if (type == "ByteFallback") return decode_byte_fallback;
    if (type == "Fuse") return fuse;
    if (type == "Replace") return make_replace(json, where);
    if (type == "Strip") return make_strip(json, where);
    if (type == "Metaspace") return make_metaspace(json, where);
    where.fail(fmt::format("decoder {} is not supported", show_text(type)));
}

}  // namespace ferry::tok
