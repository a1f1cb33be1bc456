#include "runtime/tokenizer/json_read.h"

#include "base/error.h"

namespace ferry::tok {
namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxQuotedBytes = 60;

const Json* find(const Json& object, const char* key) {
    if (!object.is_object()) return nullptr;
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? nullptr : &*it;
}

const Json& need(const Json& object, const char* key, const Where& where) {
    const Json* field = find(object, key);
    if (field == nullptr) where.fail(fmt::format("'{}' is missing", key));
    return *field;
}

}  // namespace

Where Where::at(std::string_view key) const {
    return {file, component.empty() ? std::string(key) : fmt::format("{}.{}", component, key),
            depth + 1};
}

Where Where::at(std::string_view key, size_t idx) const {
    return at(fmt::format("{}[{}]", key, idx));
}

std::string Where::text() const {
    return component.empty() ? file : fmt::format("{}: {}", file, component);
}

void Where::fail(std::string_view what) const {
    throw Error(ErrorKind::checkpoint, fmt::format("{}: {}", text(), what));
}

std::string show_text(std::string_view text) {
    const bool is_long = text.size() > kMaxQuotedBytes;
    const std::string shown(text.substr(0, kMaxQuotedBytes));
    return Json(shown).dump(-1, ' ', false, Json::error_handler_t::replace) + (is_long ? "…" : "");
}

bool get_bool(const Json& object, const char* key, bool fallback, const Where& where) {
    const Json* field = find(object, key);
    if (field == nullptr) return fallback;
    if (!field->is_boolean()) where.fail(fmt::format("'{}' is not true or false", key));
    return field->get<bool>();
}

std::string get_string(const Json& object, const char* key, std::string_view fallback,
                       const Where& where) {
    const Json* field = find(object, key);
    if (field == nullptr) return std::string(fallback);
    if (!field->is_string()) where.fail(fmt::format("'{}' is not a string", key));
    return field->get<std::string>();
}

std::string need_string(const Json& object, const char* key, const Where& where) {
    need(object, key, where);
    return get_string(object, key, "", where);
}

int64_t need_int(const Json& object, const char* key, int64_t min, int64_t max,
                 const Where& where) {
    const Json& field = need(object, key, where);
    const bool is_huge = field.is_number_unsigned() && field.get<uint64_t>() > uint64_t(max);
    if (!field.is_number_integer() || is_huge || field.get<int64_t>() < min ||
        field.get<int64_t>() > max) {
        where.fail(fmt::format("'{}' is not an integer from {} to {}", key, min, max));
    }
    return field.get<int64_t>();
}

const Json& need_array(const Json& object, const char* key, const Where& where) {
    const Json& field = need(object, key, where);
    if (!field.is_array()) where.fail(fmt::format("'{}' is not a list", key));
    return field;
}

const Json& need_object(const Json& object, const char* key, const Where& where) {
    const Json& field = need(object, key, where);
    if (!field.is_object()) where.fail(fmt::format("'{}' is not an object", key));
    return field;
}

bool is_absent(const Json& object, const char* key) {
    return find(object, key) == nullptr;
}

std::string component_type(const Json& json, const Where& where) {
    if (where.depth > kMaxDepth) where.fail("nested too deeply");
    if (!json.is_object()) where.fail("is not an object");
    return need_string(json, "type", where);
}

}  // namespace ferry::tok
