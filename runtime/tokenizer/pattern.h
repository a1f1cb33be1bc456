// The `pattern` field of Split and Replace: {"String": literal} or {"Regex": pattern}.
#pragma once
#include <string>

#include "runtime/tokenizer/json_read.h"
#include "runtime/tokenizer/regex.h"

namespace ferry::tok {

// Compiles `component["pattern"]`. Throws Error(checkpoint).
inline Regex read_pattern(const Json& component, const Where& where) {
    if (component.contains("pattern") && component["pattern"].is_string()) {
        return Regex(Regex::escape(component["pattern"].get<std::string>()), where.text());
    }
    const Json& pattern = need_object(component, "pattern", where);
    if (!is_absent(pattern, "Regex")) {
        return Regex(need_string(pattern, "Regex", where), where.text());
    }
    return Regex(Regex::escape(need_string(pattern, "String", where)), where.text());
}

// `text` with every match replaced by `content`, literally.
inline std::string replace_all(const Regex& pattern, std::string_view text,
                               std::string_view content) {
    std::vector<Span> matches;
    pattern.find_all(text, &matches);
    std::string out;
    size_t copied = 0;
    for (const Span& match : matches) {
        out += text.substr(copied, match.begin - copied);
        out += content;
        copied = match.end;
    }
    out += text.substr(copied);
    return out;
}

}  // namespace ferry::tok
