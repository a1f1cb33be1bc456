// JSON that comes from files: duplicate keys are refused and errors name the file. For .cpp files
// only.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ferry {

using Json = nlohmann::json;

// Throws Error(checkpoint) "WHERE: ..." when the text is no JSON, an object has a key twice, or
// nesting exceeds 16 levels. `visit_entry(key, value)`, when given, is called with every value of
// the outermost object as soon as it is read; when it returns true the value is dropped.
using VisitEntry = std::function<bool(const std::string& key, const Json& value)>;
Json parse_json(std::string_view text, const std::string& where,
                const VisitEntry& visit_entry = {});

// Text from a file on one printable line, shortened, in quotes: for messages.
std::string in_quotes(std::string_view text);

}  // namespace ferry
