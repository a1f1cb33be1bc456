// Filters, tests and methods of the template language.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/jinja/value.h"

namespace ferry::jinja {

// Evaluated arguments. `values[0]` is what the filter, test or method is applied to.
struct Arguments {
    std::vector<Value> values;
    std::vector<std::pair<std::string, Value>> named;

    // The argument at `idx`, or named `name`, or null.
    const Value* find(size_t idx, std::string_view name) const;
};

bool has_filter(std::string_view name);
bool has_test(std::string_view name);

// Throws std::invalid_argument with what is wrong; the interpreter adds where. So do the functions
// below.
[[noreturn]] void refuse(const std::string& what);

Value apply_filter(std::string_view name, const Arguments& arguments);
bool apply_test(std::string_view name, const Arguments& arguments);
Value call_method(std::string_view name, const Arguments& arguments);

// Python's x[begin:end:step] of a list or (by characters) a string; undefined where left out.
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step);
// Python's x[idx] of a list or a string, x["key"] of a mapping; undefined when it is not there.
Value index(const Value& value, const Value& key);
// Python's `item in container`.
bool contains(const Value& container, const Value& item);
// The items of a list, the keys of a mapping, the characters of a string.
List iterate(const Value& value);
// As {{ value }} prints it.
std::string to_text(const Value& value);

}  // namespace ferry::jinja
