// Tables of named settings: one entry gives parsing, checking, printing and help of a field.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "runtime/yaml.h"

namespace ferry {

// One of a few names, held as an enum whose values count from 0 in their order.
struct Choice {
    std::vector<std::string> names;
    std::function<int()> get;
    std::function<void(int)> set;
};

template <typename Enum>
Choice choice(Enum& value, std::vector<std::string> names) {
    return {std::move(names), [&value] { return static_cast<int>(value); },
            [&value](int index) { value = static_cast<Enum>(index); }};
}

// Of numbers, ends included.
struct NumberRange {
    double min = -std::numeric_limits<double>::max();
    double max = std::numeric_limits<double>::max();
};

// Whether a finished run stays right when the field changes.
enum class Changes { nothing, results };

struct Field {
    std::string key;  // "engine.threads"
    // Where the value lives; owned by whoever made the table.
    std::variant<bool*, int64_t*, uint64_t*, double*, std::string*, std::vector<std::string>*,
                 std::vector<int32_t>*, std::optional<int64_t>*, Choice>
        target;
    NumberRange range;
    Changes changes = Changes::nothing;
    std::string meaning;  // one line
};

// Where the values of fields came from, by key: "demo.yaml:12" or "--set".
using FieldOrigins = std::map<std::string, std::string>;

// Sets one field. Throws Error(kind) "WHERE: KEY: what is expected, what is there".
void assign(const Field& field, const YamlValue& value, const std::string& where, ErrorKind kind);

// Sets the fields that a file's mapping names ("section: {key: value}" for "section.key"). Throws
// Error(kind) "FILE:LINE: KEY: ..." also for keys that no field has, with the nearest one.
void assign_all(const std::vector<Field>& fields, const YamlValue& root, const std::string& file,
                ErrorKind kind, FieldOrigins* origins = nullptr);

// Sets one field from "section.key=value". Throws Error(usage) "--set: KEY: ...".
void assign_text(const std::vector<Field>& fields, std::string_view assignment,
                 FieldOrigins* origins = nullptr);

// "no such key; did you mean engine.threads?"
std::string unknown_key(const std::vector<Field>& fields, const std::string& key);

// The value as YAML, on one line.
std::string value_text(const Field& field);
// All fields as YAML, by section, in order of the table; `only` leaves others out.
std::string to_yaml(const std::vector<Field>& fields, std::optional<Changes> only = {});
// For people: each field's default (the values that the table's owner holds), what is allowed,
// and its meaning.
std::string describe(const std::vector<Field>& fields);

}  // namespace ferry
