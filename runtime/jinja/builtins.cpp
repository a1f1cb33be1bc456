#include "runtime/jinja/builtins.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>

#include "runtime/tokenizer/unicode.h"

namespace ferry::jinja {

void refuse(const std::string& what) {
    throw std::invalid_argument(what);
}

namespace {

const std::string& need_string(const Value* value, std::string_view what) {
    const std::string* text = value != nullptr ? value->as<std::string>() : nullptr;
    if (text == nullptr) {
        refuse(fmt::format("{} is {}, not a string", what,
                           value != nullptr ? value->type_name() : "missing"));
    }
    return *text;
}

const std::string& need_self(const Arguments& a) {
    return need_string(&a.values[0], "the value");
}

std::vector<std::string_view> characters(std::string_view text) {
    std::vector<std::string_view> result;
    for (size_t pos = 0; pos < text.size();) {
        const size_t begin = pos;
        tok::next_char(text, &pos);
        result.push_back(text.substr(begin, pos - begin));
    }
    return result;
}

enum Side { kLeft = 1, kRight = 2, kBoth = 3 };

// Python's str.strip: white space, or any of the characters of `set`.
std::string strip(std::string_view text, const Value* set, Side side) {
    const bool has_set = set != nullptr && !set->is_none();
    const std::string set_text = has_set ? need_string(set, "the argument of strip") : "";
    const auto is_stripped = [&](std::string_view character) {
        size_t pos = 0;
        return has_set ? set_text.find(character) != std::string::npos
                       : tok::is_whitespace(tok::next_char(character, &pos)) ||
                             (character[0] >= 0x1C && character[0] <= 0x1F);  // as Python
    };
    const std::vector<std::string_view> all = characters(text);
    size_t begin = 0, end = all.size();
    while ((side & kLeft) && begin < end && is_stripped(all[begin])) ++begin;
    while ((side & kRight) && end > begin && is_stripped(all[end - 1])) --end;
    std::string result;
    for (size_t i = begin; i < end; ++i) result += all[i];
    return result;
}

std::string replace(const std::string& text, const std::string& from, const std::string& to,
                    int64_t max_count) {
    if (from.empty()) refuse("replace of an empty string is not supported");
    std::string result;
    size_t copied = 0;
    for (size_t found; max_count != 0 && (found = text.find(from, copied)) != std::string::npos;) {
        result += text.substr(copied, found - copied) + to;
        copied = found + from.size();
        --max_count;
    }
    return result + text.substr(copied);
}

Value replace_arguments(const Arguments& a) {
    const Value* count = a.find(3, "count");
    return replace(need_self(a), need_string(a.find(1, "old"), "old"),
                   need_string(a.find(2, "new"), "new"), count ? count->integer() : -1);
}

// Python's str.split: at a separator, or at runs of white space.
Value split(const Arguments& a) {
    const std::string& text = need_self(a);
    const Value* separator = a.find(1, "sep");
    const Value* limit = a.find(2, "maxsplit");
    int64_t num_left = limit != nullptr ? limit->integer() : -1;
    List parts;
    if (separator == nullptr || separator->is_none()) {
        std::string rest = strip(text, nullptr, kLeft);
        while (!rest.empty()) {
            size_t end = 0, pos = 0;
            while (pos < rest.size() && !tok::is_whitespace(tok::next_char(rest, &pos))) end = pos;
            if (num_left-- == 0) end = rest.size();
            parts.push_back(rest.substr(0, end));
            rest = strip(std::string_view(rest).substr(end), nullptr, kLeft);
        }
        return parts;
    }
    const std::string& mark = need_string(separator, "the separator");
    if (mark.empty()) refuse("split at an empty string");
    size_t begin = 0;
    for (size_t found; num_left-- != 0 && (found = text.find(mark, begin)) != std::string::npos;) {
        parts.push_back(text.substr(begin, found - begin));
        begin = found + mark.size();
    }
    parts.push_back(text.substr(begin));
    return parts;
}

std::string upper(std::string text) {
    for (const char c : text) {
        if (c & 0x80) refuse("upper case of other than ASCII is not supported");
    }
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? char(c - 32) : c; });
    return text;
}

std::string capitalize(const std::string& text) {
    const std::string lower = tok::lowercase(text);
    return lower.empty() ? lower : upper(lower.substr(0, 1)) + lower.substr(1);
}

Value join(const Value& items, const std::string& separator) {
    std::string text;
    bool is_first = true;
    for (const Value& item : iterate(items)) {
        if (!is_first) text += separator;
        text += to_text(item);
        is_first = false;
    }
    return text;
}

Value items_of(const Value& value) {
    List pairs;
    if (value.is_undefined()) return pairs;
    if (value.dict() == nullptr) refuse(fmt::format("items of {}", value.type_name()));
    for (const auto& [key, item] : value.dict()->items) pairs.push_back(List{key, item});
    return pairs;
}

Value keys_or_values(const Value& value, bool wants_keys) {
    List result;
    for (const auto& [key, item] : value.dict()->items) {
        result.push_back(wants_keys ? Value(key) : item);
    }
    return result;
}

Value length(const Value& value) {
    if (value.is_none() || value.is_number()) {
        refuse(fmt::format("length of {}", value.type_name()));
    }
    return int64_t(iterate(value).size());
}

Value to_integer(const Value& value) {
    if (const std::string* text = value.as<std::string>()) {
        try {
            return int64_t{std::stoll(*text)};
        } catch (const std::exception&) {
            return int64_t{0};
        }
    }
    return int64_t(std::clamp(value.number(), -9e15, 9e15));
}

Value default_value(const Arguments& a) {
    const Value* when_false = a.find(2, "boolean");
    const bool is_missing = a.values[0].is_undefined() ||
                            (when_false && when_false->is_true() && !a.values[0].is_true());
    const Value* fallback = a.find(1, "default_value");
    return !is_missing ? a.values[0] : fallback ? *fallback : Value("");
}

Value to_json(const Arguments& a) {
    for (const auto& [name, value] : a.named) {
        const bool is_default = name == "ensure_ascii" && !value.is_true();
        if (name != "indent" && name != "separators" && !is_default)
            refuse(fmt::format("tojson with {}", name));
    }
    JsonStyle style;
    const Value* indent = a.find(1, "indent");
    if (indent != nullptr && !indent->is_none()) {
        style.indent = int(std::clamp<int64_t>(indent->integer(), 0, 16));
        style.item_separator = ",";
    }
    for (const auto& [name, value] : a.named) {
        if (name != "separators" || value.is_none()) continue;
        const List* pair = value.list();
        if (pair == nullptr || pair->size() != 2) refuse("tojson takes two separators");
        style.item_separator = need_string(&(*pair)[0], "the separator");
        style.key_separator = need_string(&(*pair)[1], "the separator");
    }
    return a.values[0].json(style);
}

// select, reject (by_attribute false) and selectattr, rejectattr.
Value select(const Arguments& a, bool keeps, bool by_attribute) {
    List result;
    const size_t test_idx = by_attribute ? 2 : 1;
    const Value* test = a.find(test_idx, "test");
    const std::string test_name = test ? need_string(test, "the test") : "";
    if (test && !has_test(test_name)) refuse(fmt::format("test '{}' is not supported", test_name));
    for (const Value& item : iterate(a.values[0])) {
        Arguments tested;
        tested.values.push_back(by_attribute ? index(item, a.values.at(1)) : item);
        for (size_t i = test_idx + 1; i < a.values.size(); ++i)
            tested.values.push_back(a.values[i]);
        const bool passes = test ? apply_test(test_name, tested) : tested.values.front().is_true();
        if (passes == keeps) result.push_back(item);
    }
    return result;
}

Value map_attribute(const Arguments& a) {
    const Value* name = a.find(1, "attribute");
    if (name == nullptr || a.values.size() > 1) refuse("map without attribute= is not supported");
    const Value* fallback = a.find(2, "default");
    List result;
    for (const Value& item : iterate(a.values[0])) {
        const Value value = index(item, *name);
        result.push_back(value.is_undefined() && fallback != nullptr ? *fallback : value);
    }
    return result;
}

Value edge(const Value& value, bool wants_first) {
    const List items = iterate(value);
    if (items.empty()) return {};
    return wants_first ? items.front() : items.back();
}

using Function = std::function<Value(const Arguments&)>;
using Table = std::map<std::string, Function, std::less<>>;

const Table& filters() {
    static const Table table = {
        {"trim", [](auto& a) { return strip(to_text(a.values[0]), a.find(1, "chars"), kBoth); }},
        {"upper", [](auto& a) { return upper(to_text(a.values[0])); }},
        {"lower", [](auto& a) { return tok::lowercase(to_text(a.values[0])); }},
        {"capitalize", [](auto& a) { return capitalize(to_text(a.values[0])); }},
        {"string", [](auto& a) { return to_text(a.values[0]); }},
        {"safe", [](auto& a) { return a.values[0]; }},
        {"int", [](auto& a) { return to_integer(a.values[0]); }},
        {"length", [](auto& a) { return length(a.values[0]); }},
        {"count", [](auto& a) { return length(a.values[0]); }},
        {"list", [](auto& a) { return iterate(a.values[0]); }},
        {"items", [](auto& a) { return items_of(a.values[0]); }},
        {"first", [](auto& a) { return edge(a.values[0], true); }},
        {"last", [](auto& a) { return edge(a.values[0], false); }},
        {"default", default_value},
        {"d", default_value},
        {"tojson", to_json},
        {"replace", replace_arguments},
        {"map", map_attribute},
        {"select", [](auto& a) { return select(a, true, false); }},
        {"reject", [](auto& a) { return select(a, false, false); }},
        {"selectattr", [](auto& a) { return select(a, true, true); }},
        {"rejectattr", [](auto& a) { return select(a, false, true); }},
        {"join",
         [](auto& a) {
             const Value* separator = a.find(1, "d");
             return join(a.values[0], separator ? need_string(separator, "the separator") : "");
         }},
    };
    return table;
}

const Value& need_argument(const Arguments& a) {
    if (a.values.size() < 2) refuse("test needs an argument");
    return a.values[1];
}

int64_t need_integer(const Value& value) {
    if (!value.as<int64_t>() && !value.as<bool>()) {
        refuse(fmt::format("{} is not an integer", value.type_name()));
    }
    return value.integer();
}

bool is_iterable(const Value& v) {
    return v.list() || v.dict() || v.as<std::string>();
}

bool is_divisible(const Arguments& a) {
    const int64_t divisor = need_integer(need_argument(a));
    if (divisor == 0) refuse("division by zero");
    return divisor == -1 || need_integer(a.values[0]) % divisor == 0;
}

const Table& tests() {
    const Function equal = [](auto& a) { return a.values[0] == need_argument(a); };
    const Function unequal = [](auto& a) { return !(a.values[0] == need_argument(a)); };
    static const Table table = {
        {"defined", [](auto& a) { return !a.values[0].is_undefined(); }},
        {"undefined", [](auto& a) { return a.values[0].is_undefined(); }},
        {"none", [](auto& a) { return a.values[0].is_none(); }},
        {"string", [](auto& a) { return a.values[0].template as<std::string>() != nullptr; }},
        {"mapping", [](auto& a) { return a.values[0].dict() != nullptr; }},
        {"iterable", [](auto& a) { return is_iterable(a.values[0]); }},
        {"sequence", [](auto& a) { return is_iterable(a.values[0]); }},
        {"number", [](auto& a) { return a.values[0].is_number(); }},
        {"integer", [](auto& a) { return a.values[0].template as<int64_t>() != nullptr; }},
        {"float", [](auto& a) { return a.values[0].template as<double>() != nullptr; }},
        {"boolean", [](auto& a) { return a.values[0].template as<bool>() != nullptr; }},
        {"true", [](auto& a) { return a.values[0].template as<bool>() && a.values[0].is_true(); }},
        {"false",
         [](auto& a) { return a.values[0].template as<bool>() && !a.values[0].is_true(); }},
        {"odd", [](auto& a) { return need_integer(a.values[0]) % 2 != 0; }},
        {"even", [](auto& a) { return need_integer(a.values[0]) % 2 == 0; }},
        {"divisibleby", is_divisible},
        {"in", [](auto& a) { return contains(need_argument(a), a.values[0]); }},
        {"equalto", equal},
        {"eq", equal},
        {"ne", unequal},
    };
    return table;
}

bool has_affix(const Arguments& a, bool at_start) {
    const std::string& text = need_self(a);
    const auto matches = [&](const Value& affix) {
        const std::string& part = need_string(&affix, "the argument");
        return at_start ? text.starts_with(part) : text.ends_with(part);
    };
    const List* choices = need_argument(a).list();
    if (choices == nullptr) return matches(need_argument(a));
    return std::any_of(choices->begin(), choices->end(), matches);
}

const Table& string_methods() {
    static const Table table = {
        {"split", split},
        {"replace", replace_arguments},
        {"strip", [](auto& a) { return strip(need_self(a), a.find(1, "chars"), kBoth); }},
        {"lstrip", [](auto& a) { return strip(need_self(a), a.find(1, "chars"), kLeft); }},
        {"rstrip", [](auto& a) { return strip(need_self(a), a.find(1, "chars"), kRight); }},
        {"upper", [](auto& a) { return upper(need_self(a)); }},
        {"lower", [](auto& a) { return tok::lowercase(need_self(a)); }},
        {"capitalize", [](auto& a) { return capitalize(need_self(a)); }},
        {"startswith", [](auto& a) { return has_affix(a, true); }},
        {"endswith", [](auto& a) { return has_affix(a, false); }},
        {"join", [](auto& a) { return join(need_argument(a), need_self(a)); }},
    };
    return table;
}

const Table& dict_methods() {
    static const Table table = {
        {"items", [](auto& a) { return items_of(a.values[0]); }},
        {"keys", [](auto& a) { return keys_or_values(a.values[0], true); }},
        {"values", [](auto& a) { return keys_or_values(a.values[0], false); }},
        {"get",
         [](auto& a) {
             const Value* found =
                 a.values[0].dict()->find(need_string(a.find(1, "key"), "the key"));
             const Value* fallback = a.find(2, "default");
             return found ? *found : fallback ? *fallback : Value(None{});
         }},
    };
    return table;
}

}  // namespace

const Value* Arguments::find(size_t idx, std::string_view name) const {
    if (idx < values.size()) return &values[idx];
    for (const auto& [key, value] : named) {
        if (key == name) return &value;
    }
    return nullptr;
}

bool has_filter(std::string_view name) {
    return filters().contains(name);
}
bool has_test(std::string_view name) {
    return tests().contains(name);
}

Value apply_filter(std::string_view name, const Arguments& arguments) {
    return filters().find(name)->second(arguments);
}

bool apply_test(std::string_view name, const Arguments& arguments) {
    return tests().find(name)->second(arguments).is_true();
}

Value call_method(std::string_view name, const Arguments& arguments) {
    const Value& self = arguments.values[0];
    static const Table none;
    const Table& table = self.as<std::string>() ? string_methods()
                         : self.dict()          ? dict_methods()
                                                : none;
    const auto method = table.find(name);
    if (method == table.end()) {
        refuse(fmt::format("method '{}' of {} is not supported", name, self.type_name()));
    }
    return method->second(arguments);
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step) {
    const List items = iterate(value);
    const int64_t size = int64_t(items.size());
    const int64_t stride = step.is_undefined() || step.is_none() ? 1 : need_integer(step);
    if (stride == 0) refuse("slice step is zero");
    // the range of positions from which a slice may start or end, as in Python
    const int64_t low = stride > 0 ? 0 : -1;
    const int64_t high = stride > 0 ? size : size - 1;
    const auto position = [&](const Value& bound, int64_t fallback) {
        if (bound.is_undefined() || bound.is_none()) return fallback;
        const int64_t given = need_integer(bound);
        return std::clamp(given < 0 ? given + size : given, low, high);
    };
    const int64_t first = position(begin, stride > 0 ? low : high);
    const int64_t last = position(end, stride > 0 ? high : low);
    List result;
    for (int64_t i = first; stride > 0 ? i < last : i > last;) {
        result.push_back(items[size_t(i)]);
        if (stride >= size || stride <= -size) break;
        i += stride;
    }
    return value.as<std::string>() ? join(result, "") : Value(result);
}

Value index(const Value& value, const Value& key) {
    if (const Dict* dict = value.dict()) {
        const std::string* name = key.as<std::string>();
        const Value* found = name ? dict->find(*name) : nullptr;
        return found ? *found : Value();
    }
    if (value.is_undefined() || value.is_none()) {
        if (value.is_none()) return {};
        refuse(fmt::format("{} of an undefined value", to_text(key)));
    }
    const bool is_text = value.as<std::string>() != nullptr;
    if ((value.list() == nullptr && !is_text) || key.as<int64_t>() == nullptr) return {};
    const List text_items = is_text ? iterate(value) : List{};
    const List& items = is_text ? text_items : *value.list();
    const int64_t size = int64_t(items.size());
    const int64_t idx = key.integer() < 0 ? key.integer() + size : key.integer();
    return idx >= 0 && idx < size ? items[size_t(idx)] : Value();
}

bool contains(const Value& container, const Value& item) {
    if (const std::string* text = container.as<std::string>()) {
        return text->find(need_string(&item, "what is looked for")) != std::string::npos;
    }
    if (container.dict()) {
        const std::string* key = item.as<std::string>();
        return key != nullptr && container.dict()->find(*key) != nullptr;
    }
    const List items = iterate(container);
    return std::find(items.begin(), items.end(), item) != items.end();
}

List iterate(const Value& value) {
    List items;
    if (const List* list = value.list()) return *list;
    if (const Dict* dict = value.dict()) {
        for (const auto& item : dict->items) items.push_back(item.first);
    } else if (const std::string* text = value.as<std::string>()) {
        for (const std::string_view c : characters(*text)) items.push_back(std::string(c));
    } else if (!value.is_undefined()) {
        refuse(fmt::format("{} has no items", value.type_name()));
    }
    return items;
}

std::string to_text(const Value& value) {
    bool ok;
    std::string text = value.text(&ok);
    if (!ok) refuse(fmt::format("a {} cannot be printed; use tojson", value.type_name()));
    return text;
}

}  // namespace ferry::jinja
