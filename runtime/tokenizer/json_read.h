// Reads fields of tokenizer.json with errors that name the file and the component.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ferry::tok {

using Json = nlohmann::json;

// A place in a file: "tokenizer.json: pre_tokenizer.pretokenizers[1]".
struct Where {
    std::string file;
    std::string component;
    int depth = 0;

    Where at(std::string_view key) const;
    Where at(std::string_view key, size_t idx) const;
    std::string text() const;
    // Throws Error(checkpoint).
    [[noreturn]] void fail(std::string_view what) const;
};

// `text` as a JSON string on one line, shortened: for use in messages.
std::string show_text(std::string_view text);

// Missing or null fields give `fallback`; another type throws.
bool get_bool(const Json& object, const char* key, bool fallback, const Where& where);
std::string get_string(const Json& object, const char* key, std::string_view fallback,
                       const Where& where);
// These throw when the field is missing.
std::string need_string(const Json& object, const char* key, const Where& where);
int64_t need_int(const Json& object, const char* key, int64_t min, int64_t max, const Where& where);
const Json& need_array(const Json& object, const char* key, const Where& where);
const Json& need_object(const Json& object, const char* key, const Where& where);

// True for a missing or null field.
bool is_absent(const Json& object, const char* key);

// The "type" of a component; throws when `json` is no object, has none, or is nested too deeply.
std::string component_type(const Json& json, const Where& where);

}  // namespace ferry::tok
