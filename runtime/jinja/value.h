// Values of the template language, with Python's notions of truth, equality and printing.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ferry::jinja {

class Value;
using List = std::vector<Value>;

// A mapping in order of insertion. Only a namespace() may be assigned to.
struct Dict {
    std::vector<std::pair<std::string, Value>> items;
    bool is_namespace = false;

    const Value* find(std::string_view key) const;
    void set(std::string_view key, Value value);
};

struct Undefined {};
struct None {};

// How JSON is written: as by json.dumps of Python unless told otherwise.
struct JsonStyle {
    int indent = -1;  // < 0: on one line
    std::string item_separator = ", ", key_separator = ": ";
};

class Value {
  public:
    Value() : data_(Undefined{}) {}
    Value(None none) : data_(none) {}
    Value(bool value) : data_(value) {}
    Value(int64_t value) : data_(value) {}
    Value(double value) : data_(value) {}
    Value(std::string value) : data_(std::move(value)) {}
    Value(const char* value) : data_(std::string(value)) {}
    Value(List list) : data_(std::make_shared<List>(std::move(list))) {}
    Value(Dict dict) : data_(std::make_shared<Dict>(std::move(dict))) {}
    // Throws Error(input) for JSON nested more deeply than `max_depth`.
    static Value from_json(const nlohmann::ordered_json& json, int max_depth = 64);

    // Null unless the value is of that type. Lists and mappings are shared, not copied.
    template <typename T>
    const T* as() const {
        return std::get_if<T>(&data_);
    }
    const List* list() const;
    Dict* dict() const;

    bool is_undefined() const { return as<Undefined>() != nullptr; }
    bool is_none() const { return as<None>() != nullptr; }
    bool is_number() const;   // true and false are numbers, as in Python
    double number() const;    // 0 for what is no number
    int64_t integer() const;  // of a bool or an int; 0 for others
    bool is_true() const;
    const char* type_name() const;

    // As {{ value }} prints it; `ok` is false for lists and mappings, which have no form here.
    std::string text(bool* ok) const;
    // json.dumps(ensure_ascii=False). Undefined becomes null.
    std::string json(const JsonStyle& style = {}) const;

    friend bool operator==(const Value& a, const Value& b);

  private:
    std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>,
                 std::shared_ptr<Dict>>
        data_;
};

}  // namespace ferry::jinja
