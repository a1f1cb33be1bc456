#include "runtime/jinja/value.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ferry::jinja {
namespace {

void append_json(const Value& value, const JsonStyle& style, int depth, std::string* out);

// Appends "open item, item close" as Python's json.dumps does. `append_item(i)` appends one.
template <typename AppendItem>
void append_items(size_t num, char open, char close, const JsonStyle& style, int depth,
                  std::string* out, AppendItem append_item) {
    const auto new_line = [&](int levels) {
        if (style.indent < 0) return;
        out->push_back('\n');
        out->append(size_t(style.indent * levels), ' ');
    };
    out->push_back(open);
    for (size_t i = 0; i < num; ++i) {
        if (i > 0) *out += style.item_separator;
        new_line(depth + 1);
        append_item(i);
    }
    if (num > 0) new_line(depth);
    out->push_back(close);
}

std::string quote(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void append_json(const Value& value, const JsonStyle& style, int depth, std::string* out) {
    if (const List* list = value.list()) {
        append_items(list->size(), '[', ']', style, depth, out,
                     [&](size_t i) { append_json((*list)[i], style, depth + 1, out); });
    } else if (const Dict* dict = value.dict()) {
        append_items(dict->items.size(), '{', '}', style, depth, out, [&](size_t i) {
            *out += quote(dict->items[i].first) + style.key_separator;
            append_json(dict->items[i].second, style, depth + 1, out);
        });
    } else if (const std::string* text = value.as<std::string>()) {
        *out += quote(*text);
    } else if (const bool* truth = value.as<bool>()) {
        *out += *truth ? "true" : "false";
    } else if (value.is_number()) {
        bool ok;
        *out += value.text(&ok);
    } else {
        *out += "null";
    }
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
    const auto item = std::find_if(items.begin(), items.end(),
                                   [key](const auto& pair) { return pair.first == key; });
    return item == items.end() ? nullptr : &item->second;
}

void Dict::set(std::string_view key, Value value) {
    for (auto& [name, old] : items) {
        if (name == key) {
            old = std::move(value);
            return;
        }
    }
    items.emplace_back(std::string(key), std::move(value));
}

Value Value::from_json(const nlohmann::ordered_json& json, int max_depth) {
    if (max_depth < 0) {
        throw Error(ErrorKind::input, "variables of the chat template: nested too deeply");
    }
    if (json.is_array()) {
        List list;
        for (const auto& item : json) list.push_back(from_json(item, max_depth - 1));
        return list;
    }
    if (json.is_object()) {
        Dict dict;
        for (const auto& [key, item] : json.items()) {
            dict.items.emplace_back(key, from_json(item, max_depth - 1));
        }
        return dict;
    }
    if (json.is_string()) return json.get<std::string>();
    if (json.is_boolean()) return json.get<bool>();
    if (json.is_number_integer()) return json.get<int64_t>();
    if (json.is_number()) return json.get<double>();
    return None{};
}

const List* Value::list() const {
    const auto* list = as<std::shared_ptr<List>>();
    return list != nullptr ? list->get() : nullptr;
}

Dict* Value::dict() const {
    const auto* dict = as<std::shared_ptr<Dict>>();
    return dict != nullptr ? dict->get() : nullptr;
}

bool Value::is_number() const {
    return as<bool>() || as<int64_t>() || as<double>();
}

double Value::number() const {
    return as<double>() ? *as<double>() : double(integer());
}

int64_t Value::integer() const {
    if (const bool* truth = as<bool>()) return *truth;
    return as<int64_t>() ? *as<int64_t>() : 0;
}

bool Value::is_true() const {
    if (const std::string* text = as<std::string>()) return !text->empty();
    if (const List* items = list()) return !items->empty();
    if (const Dict* items = dict()) return !items->items.empty();
    return is_number() && number() != 0;
}

const char* Value::type_name() const {
    constexpr const char* names[] = {"undefined", "none",   "bool", "int",
                                     "float",     "string", "list", "mapping"};
    return names[data_.index()];
}

std::string Value::text(bool* ok) const {
    *ok = list() == nullptr && dict() == nullptr;
    if (const std::string* text = as<std::string>()) return *text;
    if (const bool* truth = as<bool>()) return *truth ? "True" : "False";
    if (const int64_t* number = as<int64_t>()) return fmt::format("{}", *number);
    if (const double* number = as<double>()) return nlohmann::json(*number).dump();
    return is_none() ? "None" : "";
}

std::string Value::json(const JsonStyle& style) const {
    std::string out;
    append_json(*this, style, 0, &out);
    return out;
}

bool operator==(const Value& a, const Value& b) {
    if (a.is_number() && b.is_number()) return a.number() == b.number();
    if (a.data_.index() != b.data_.index()) return false;
    if (const std::string* text = a.as<std::string>()) return *text == *b.as<std::string>();
    if (const List* items = a.list()) return *items == *b.list();
    if (const Dict* items = a.dict()) {
        return items->items.size() == b.dict()->items.size() &&
               std::all_of(items->items.begin(), items->items.end(), [&b](const auto& item) {
                   const Value* other = b.dict()->find(item.first);
                   return other != nullptr && *other == item.second;
               });
    }
    return true;  // both none, or both undefined
}

}  // namespace ferry::jinja
