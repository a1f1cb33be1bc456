#include "runtime/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>

#include "runtime/json_text.h"
#include "runtime/request.h"
#include "runtime/spelling.h"

namespace ferry {
namespace {

template <typename... Handlers>
struct Overloaded : Handlers... {
    using Handlers::operator()...;
};
template <typename... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;  // clang 14 does not deduce it by itself

std::string describe_value(const YamlValue& value) {
    switch (value.kind) {
        case YamlValue::Kind::null:
            return "nothing";
        case YamlValue::Kind::scalar:
            return (value.quoted ? "the text " : "") + in_quotes(value.text);
        case YamlValue::Kind::sequence: {
            constexpr size_t kMostShown = 5;
            std::vector<std::string> items;
            for (size_t i = 0; i < std::min(kMostShown, value.items.size()); ++i)
                items.push_back(value.items[i].kind == YamlValue::Kind::scalar
                                    ? (value.items[i].quoted ? in_quotes(value.items[i].text)
                                                             : value.items[i].text)
                                    : describe_value(value.items[i]));
            if (value.items.size() > kMostShown) items.push_back("...");
            return fmt::format("the list [{}]", fmt::join(items, ", "));
        }
        case YamlValue::Kind::mapping:
            return "a mapping";
    }
    return "?";
}

std::string describe_range(const NumberRange& range) {
    constexpr double kNobodysLimit = 0x1p53;  // not worth saying
    const bool has_max = range.max < kNobodysLimit;
    if (range.min <= -kNobodysLimit) return has_max ? fmt::format("at most {}", range.max) : "";
    if (!has_max) return fmt::format("at least {}", range.min);
    return fmt::format("{} .. {}", range.min, range.max);
}

std::string with_range(const std::string& what, const NumberRange& range) {
    const std::string text = describe_range(range);
    return text.empty() ? what : fmt::format("{}, {}", what, text);
}

// What a field takes, in words: for help and for errors.
std::string expectation(const Field& field) {
    const auto number = [&](const char* what) { return with_range(what, field.range); };
    return std::visit(
        Overloaded{
            [](bool*) -> std::string { return "true or false"; },
            [&](int64_t*) { return number("an integer"); },
            [](uint64_t*) -> std::string { return "an integer, at least 0"; },
            [&](double*) { return number("a number"); },
            [](std::string*) -> std::string { return "text"; },
            [](std::vector<std::string>*) -> std::string { return "text or a list of it"; },
            [](std::vector<int32_t>*) -> std::string {
                return "a list of token ids, integers from 0";
            },
            [&](std::optional<int64_t>*) { return number("null or an integer"); },
            [](const Choice& choice) { return fmt::format("{}", fmt::join(choice.names, " | ")); }},
        field.target);
}

template <typename Number>
bool read_number(const YamlValue& value, Number& number) {
    if (value.kind != YamlValue::Kind::scalar || value.quoted) return false;
    const char* end = value.text.data() + value.text.size();
    const auto result = std::from_chars(value.text.data(), end, number);
    return result.ec == std::errc() && result.ptr == end;
}

template <typename Number>
bool in_range(Number number, const NumberRange& range) {
    return static_cast<double>(number) >= range.min && static_cast<double>(number) <= range.max;
}

template <typename Number>
bool set_number(const YamlValue& value, const NumberRange& range, Number& target) {
    Number number{};
    if (!read_number(value, number) || !in_range(number, range)) return false;
    target = number;
    return true;
}

bool set_texts(const YamlValue& value, std::vector<std::string>& target) {
    std::vector<std::string> texts;
    if (value.kind == YamlValue::Kind::scalar) {
        texts.push_back(value.text);
    } else if (value.kind == YamlValue::Kind::sequence) {
        for (const YamlValue& item : value.items) {
            if (item.kind != YamlValue::Kind::scalar) return false;
            texts.push_back(item.text);
        }
    } else {
        return false;
    }
    target = std::move(texts);
    return true;
}

bool set_ids(const YamlValue& value, std::vector<int32_t>& target) {
    if (value.kind != YamlValue::Kind::sequence) return false;
    std::vector<int32_t> ids(value.items.size());
    for (size_t i = 0; i < ids.size(); ++i)
        if (!read_number(value.items[i], ids[i]) || ids[i] < 0) return false;
    target = std::move(ids);
    return true;
}

bool set_choice(const YamlValue& value, const Choice& choice) {
    if (value.kind != YamlValue::Kind::scalar) return false;
    const auto found = std::find(choice.names.begin(), choice.names.end(), value.text);
    if (found == choice.names.end()) return false;
    choice.set(static_cast<int>(found - choice.names.begin()));
    return true;
}

bool set(const Field& field, const YamlValue& value) {
    return std::visit(
        Overloaded{[&](bool* target) {
                       if (value.quoted || (value.text != "true" && value.text != "false"))
                           return false;
                       *target = value.text == "true";
                       return true;
                   },
                   [&](int64_t* target) { return set_number(value, field.range, *target); },
                   [&](uint64_t* target) { return set_number(value, {}, *target); },
                   [&](double* target) { return set_number(value, field.range, *target); },
                   [&](std::string* target) {
                       if (value.kind != YamlValue::Kind::scalar) return false;
                       *target = value.text;
                       return true;
                   },
                   [&](std::vector<std::string>* target) { return set_texts(value, *target); },
                   [&](std::vector<int32_t>* target) { return set_ids(value, *target); },
                   [&](std::optional<int64_t>* target) {
                       if (value.kind == YamlValue::Kind::null) {
                           target->reset();
                           return true;
                       }
                       int64_t number = 0;
                       if (!set_number(value, field.range, number)) return false;
                       *target = number;
                       return true;
                   },
                   [&](const Choice& choice) { return set_choice(value, choice); }},
        field.target);
}

std::string double_text(double value) {
    const std::string text = fmt::format("{}", value);
    return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string section_of(const std::string& key) {
    const size_t dot = key.find('.');
    return dot == std::string::npos ? std::string() : key.substr(0, dot);
}

const Field* find_field(const std::vector<Field>& fields, const std::string& key) {
    for (const Field& field : fields)
        if (field.key == key) return &field;
    return nullptr;
}

bool has_section(const std::vector<Field>& fields, const std::string& section) {
    return std::any_of(fields.begin(), fields.end(),
                       [&](const Field& field) { return field.key.starts_with(section + "."); });
}

void assign_mapping(const std::vector<Field>& fields, const std::string& prefix,
                    const YamlValue& mapping, const std::string& file, ErrorKind kind,
                    FieldOrigins* origins) {
    for (const YamlValue::Entry& entry : mapping.entries) {
        const std::string key = prefix + entry.key;
        const std::string where = fmt::format("{}:{}", file, entry.line);
        if (const Field* field = find_field(fields, key)) {
            assign(*field, entry.value, where, kind);
            if (origins != nullptr) (*origins)[key] = where;
        } else if (!has_section(fields, key)) {
            throw Error(kind, "{}: {}: {}", where, key, unknown_key(fields, key));
        } else if (entry.value.kind == YamlValue::Kind::mapping) {
            assign_mapping(fields, key + ".", entry.value, file, kind, origins);
        } else if (entry.value.kind != YamlValue::Kind::null) {
            throw Error(kind, "{}: {}: this is a section and takes \"key: value\" lines, not {}",
                        where, key, describe_value(entry.value));
        }
    }
}

}  // namespace

void assign(const Field& field, const YamlValue& value, const std::string& where, ErrorKind kind) {
    if (!set(field, value))
        throw Error(kind, "{}: {}: must be {}; is {}", where, field.key, expectation(field),
                    describe_value(value));
}

void assign_all(const std::vector<Field>& fields, const YamlValue& root, const std::string& file,
                ErrorKind kind, FieldOrigins* origins) {
    if (root.kind == YamlValue::Kind::null) return;
    if (root.kind != YamlValue::Kind::mapping)
        throw Error(kind, "{}:{}: must be a mapping of keys to values; is {}", file, root.line,
                    describe_value(root));
    assign_mapping(fields, "", root, file, kind, origins);
}

void assign_text(const std::vector<Field>& fields, std::string_view assignment,
                 FieldOrigins* origins) {
    const size_t equals = assignment.find('=');
    if (equals == std::string_view::npos)
        throw Error(ErrorKind::usage, "--set {}: must be section.key=value", in_quotes(assignment));
    const std::string key(assignment.substr(0, equals));
    const Field* field = find_field(fields, key);
    if (has_section(fields, key))
        throw Error(ErrorKind::usage, "--set {}: this is a section: set its keys, {}.KEY=VALUE",
                    in_quotes(key), key);
    if (field == nullptr)
        throw Error(ErrorKind::usage, "--set: {}: {}", in_quotes(key), unknown_key(fields, key));
    YamlValue value;
    value.kind = YamlValue::Kind::scalar;
    value.text = assignment.substr(equals + 1);
    const bool takes_list = std::holds_alternative<std::vector<std::string>*>(field->target) ||
                            std::holds_alternative<std::vector<int32_t>*>(field->target);
    if (takes_list && value.text.starts_with("["))
        value = parse_yaml(value.text, "--set " + key);
    else if (value.text == "null" && !std::holds_alternative<std::string*>(field->target))
        value.kind = YamlValue::Kind::null;
    assign(*field, value, "--set", ErrorKind::usage);
    if (origins != nullptr) (*origins)[key] = "--set";
}

std::string unknown_key(const std::vector<Field>& fields, const std::string& key) {
    // A misspelt key, a right key in the wrong section, a misspelt section.
    std::vector<std::string> keys, names, sections;
    for (const Field& field : fields) {
        keys.push_back(field.key);
        names.push_back(field.key.substr(field.key.rfind('.') + 1));
        if (field.key.find('.') != std::string::npos) sections.push_back(section_of(field.key));
    }
    const std::string name = key.substr(key.rfind('.') + 1);
    const auto same_name = std::find(names.begin(), names.end(), name);
    std::string nearest;
    if (same_name != names.end()) nearest = keys[static_cast<size_t>(same_name - names.begin())];
    if (nearest.empty() && key.find('.') == std::string::npos)
        nearest = nearest_spelling(key, sections);
    if (nearest.empty()) {
        std::vector<std::string> siblings;  // a name is compared with those of its section
        for (const std::string& candidate : keys)
            if (section_of(candidate) == section_of(key)) siblings.push_back(candidate);
        std::vector<std::string> sibling_names;
        for (const std::string& sibling : siblings)
            sibling_names.push_back(sibling.substr(sibling.rfind('.') + 1));
        const std::string found = nearest_spelling(name, sibling_names);
        for (size_t i = 0; i < siblings.size(); ++i)
            if (!found.empty() && sibling_names[i] == found) nearest = siblings[i];
    }
    if (nearest.empty()) nearest = nearest_spelling(key, keys);
    return nearest.empty() ? "no such key" : fmt::format("no such key; did you mean {}?", nearest);
}

std::string value_text(const Field& field) {
    return std::visit(
        Overloaded{
            [](const bool* value) -> std::string { return *value ? "true" : "false"; },
            [](const int64_t* value) { return fmt::format("{}", *value); },
            [](const uint64_t* value) { return fmt::format("{}", *value); },
            [](const double* value) { return double_text(*value); },
            [](const std::string* value) { return json_string(*value); },
            [](const std::vector<std::string>* value) {
                std::vector<std::string> quoted;
                for (const std::string& text : *value) quoted.push_back(json_string(text));
                return fmt::format("[{}]", fmt::join(quoted, ", "));
            },
            [](const std::vector<int32_t>* value) {
                return fmt::format("[{}]", fmt::join(*value, ", "));
            },
            [](const std::optional<int64_t>* value) {
                return *value ? fmt::format("{}", **value) : "null";
            },
            [](const Choice& choice) { return choice.names[static_cast<size_t>(choice.get())]; }},
        field.target);
}

std::string to_yaml(const std::vector<Field>& fields, std::optional<Changes> only) {
    std::string text, section;
    for (const Field& field : fields) {
        if (only && field.changes != *only) continue;
        const std::string own_section = section_of(field.key);
        if (own_section != section) text += own_section + ":\n";
        section = own_section;
        const std::string name = field.key.substr(section.empty() ? 0 : section.size() + 1);
        text += fmt::format("{}{}: {}\n", section.empty() ? "" : "  ", name, value_text(field));
    }
    return text;
}

std::string describe(const std::vector<Field>& fields) {
    std::string text, section;
    for (const Field& field : fields) {
        const std::string own_section = section_of(field.key);
        if (own_section != section) text += fmt::format("\n{}:\n", own_section);
        section = own_section;
        const std::string name = field.key.substr(section.empty() ? 0 : section.size() + 1);
        text += fmt::format("  {:<20} {:<12} {}\n{:23}{}\n", name, value_text(field),
                            expectation(field), "", field.meaning);
    }
    return text;
}

}  // namespace ferry
