#include "runtime/tokenizer/normalizer.h"

#include <fmt/core.h>

#include <vector>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {
namespace {

Normalizer make_sequence(const Json& json, const Where& where) {
    std::vector<Normalizer> parts;
    for (const Json& part : need_array(json, "normalizers", where)) {
        parts.push_back(make_normalizer(part, where.at("normalizers", parts.size())));
    }
    return [parts](std::string* text) {
        for (const Normalizer& part : parts) part(text);
    };
}

Normalizer make_normal_form(NormalForm form) {
    return [form](std::string* text) { *text = normalize(*text, form); };
}

Normalizer make_strip(const Json& json, const Where& where) {
    const bool strip_left = get_bool(json, "strip_left", true, where);
    const bool strip_right = get_bool(json, "strip_right", true, where);
    return [strip_left, strip_right](std::string* text) {
        size_t end = text->size();
        while (strip_right && end > 0 && is_whitespace(char_before(*text, end))) {
            do --end;
            while ((uint8_t((*text)[end]) & 0xC0) == 0x80);
        }
        text->resize(end);
        size_t begin = 0;
        for (size_t pos = 0; strip_left && pos < end && is_whitespace(next_char(*text, &pos));) {
            begin = pos;
        }
        text->erase(0, begin);
    };
}

void strip_accents(std::string* text) {
    std::string kept;
    for (size_t pos = 0; pos < text->size();) {
        const char32_t c = next_char(*text, &pos);
        if (!is_mark(c)) append_char(c, &kept);
    }
    *text = std::move(kept);
}

Normalizer make_replace(const Json& json, const Where& where) {
    const Regex pattern = read_pattern(json, where);
    const std::string content = need_string(json, "content", where);
    return [pattern, content](std::string* text) { *text = replace_all(pattern, *text, content); };
}

Normalizer make_prepend(const Json& json, const Where& where) {
    const std::string prefix = need_string(json, "prepend", where);
    return [prefix](std::string* text) {
        if (!text->empty()) text->insert(0, prefix);
    };
}

void to_byte_level(std::string* text) {
    std::string mapped;
    append_byte_level(*text, &mapped);
    *text = std::move(mapped);
}

}  // namespace

Normalizer make_normalizer(const Json& json, const Where& where) {
    const std::string type = component_type(json, where);
    if (type == "Sequence") return make_sequence(json, where);
    if (type == "NFC") return make_normal_form(NormalForm::nfc);
    if (type == "NFD") return make_normal_form(NormalForm::nfd);
    if (type == "NFKC") return make_normal_form(NormalForm::nfkc);
    if (type == "NFKD") return make_normal_form(NormalForm::nfkd);
    if (type == "Lowercase") return [](std::string* text) { *text = lowercase(*text); };
    if (type == "Strip") return make_strip(json, where);
    if (type == "StripAccents") return strip_accents;
    if (type == "Replace") return make_replace(json, where);
    if (type == "Prepend") return make_prepend(json, where);
    if (type == "ByteLevel") return to_byte_level;
    where.fail(fmt::format("normalizer {} is not supported", show_text(type)));
}

}  // namespace ferry::tok
