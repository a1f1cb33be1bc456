#include "runtime/jinja/interpreter.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "runtime/jinja/builtins.h"

namespace ferry::jinja {
namespace {

constexpr int64_t kMaxSteps = 4'000'000;
constexpr size_t kMaxTextBytes = size_t{256} << 20;
// The stack is bounded: long chains of operators make deep trees, and macros call themselves.
constexpr int kMaxCalls = 16;
constexpr int kMaxDepth = 1000;

enum class Flow { normal, stop, next };

class Interpreter {
  public:
    Interpreter(const Dict& variables, const Source& source) : source_(source) {
        scopes_.push_back(variables);
        scopes_.emplace_back();
    }

    std::string run(const Nodes& nodes) {
        try {
            std::string out;
            execute(nodes, &out);
            return out;
        } catch (const std::invalid_argument& error) {
            std::string what = error.what();
            for (char& c : what) {
                if (c == '\n' || c == '\r') c = ' ';
            }
            throw Error(ErrorKind::input, fmt::format("{}:{}: {}", source_.name, line_, what));
        }
    }

  private:
    void step(int line) {
        line_ = line;
        if (++num_steps_ > kMaxSteps) refuse("the template does not end");
    }

    // ---- statements

    Flow execute(const Nodes& nodes, std::string* out) {
        for (const Node& node : nodes) {
            const Flow flow = execute(node, out);
            if (flow != Flow::normal) return flow;
        }
        return Flow::normal;
    }

    Flow execute(const Node& node, std::string* out) {
        step(node.line);
        switch (node.kind) {
            case NodeKind::text:
                append(node.text, out);
                break;
            case NodeKind::print:
                append(to_text(evaluate(*node.expr)), out);
                break;
            case NodeKind::branch:
                return execute(evaluate(*node.expr).is_true() ? node.body : node.orelse, out);
            case NodeKind::loop:
                return execute_loop(node, out);
            case NodeKind::set:
                execute_set(node);
                break;
            case NodeKind::macro:
                macros_[node.expr->name] = &node;
                break;
            case NodeKind::stop:
                return Flow::stop;
            case NodeKind::next:
                return Flow::next;
        }
        return Flow::normal;
    }

    void append(const std::string& text, std::string* out) const {
        if (out->size() + text.size() > kMaxTextBytes) refuse("the rendered text is too long");
        *out += text;
    }

    void bind(const std::vector<std::string>& targets, const Value& item) {
        if (targets.size() == 1) return scopes_.back().set(targets[0], item);
        const List parts = iterate(item);
        if (parts.size() != targets.size()) {
            refuse(fmt::format("{} names for {} values", targets.size(), parts.size()));
        }
        for (size_t i = 0; i < parts.size(); ++i) scopes_.back().set(targets[i], parts[i]);
    }

    Flow execute_loop(const Node& node, std::string* out) {
        List items;
        for (const Value& item : iterate(evaluate(*node.expr))) {
            if (node.condition) {
                step(node.line);
                scopes_.emplace_back();
                bind(node.targets, item);
                const bool is_wanted = evaluate(*node.condition).is_true();
                scopes_.pop_back();
                if (!is_wanted) continue;
            }
            items.push_back(item);
        }
        if (items.empty()) return execute(node.orelse, out);
        for (size_t i = 0; i < items.size(); ++i) {
            step(node.line);
            scopes_.emplace_back();
            bind(node.targets, items[i]);
            scopes_.back().set("loop", describe_loop(items, i));
            num_steps_ += 10;  // what that costs
            const Flow flow = execute(node.body, out);
            scopes_.pop_back();
            if (flow == Flow::stop) break;
        }
        return Flow::normal;
    }

    static Value describe_loop(const List& items, size_t idx) {
        const int64_t i = int64_t(idx), num = int64_t(items.size());
        Dict loop;
        loop.items = {{"index", i + 1},          {"index0", i},   {"first", i == 0},
                      {"last", i + 1 == num},    {"length", num}, {"revindex", num - i},
                      {"revindex0", num - i - 1}};
        if (idx > 0) loop.set("previtem", items[idx - 1]);
        if (idx + 1 < items.size()) loop.set("nextitem", items[idx + 1]);
        return loop;
    }

    void execute_set(const Node& node) {
        Value value;
        if (node.expr) {
            value = evaluate(*node.expr);
        } else {
            std::string text;
            scopes_.emplace_back();
            execute(node.body, &text);
            scopes_.pop_back();
            value = text;
        }
        if (node.targets.size() == 1) return scopes_.back().set(node.targets[0], value);
        const Value object = look_up(node.targets[0]);
        if (object.dict() == nullptr || !object.dict()->is_namespace) {
            refuse(fmt::format("'{}' is not a namespace", node.targets[0]));
        }
        object.dict()->set(node.targets[1], value);
    }

    // ---- expressions

    Value look_up(const std::string& name) const {
        for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
            if (const Value* value = scope->find(name)) return *value;
        }
        return {};
    }

    Value evaluate_optional(const ExprPtr& expr) { return expr ? evaluate(*expr) : Value(); }

    Value evaluate(const Expr& expr) {
        step(expr.line);
        if (++depth_ > kMaxDepth) refuse("expressions are nested too deeply");
        Value value = evaluate_nested(expr);
        --depth_;
        return value;
    }

    Value evaluate_nested(const Expr& expr) {
        const auto& args = expr.args;
        switch (expr.kind) {
            case ExprKind::literal:
                return expr.value;
            case ExprKind::variable:
                return look_up(expr.name);
            case ExprKind::list:
                return evaluate_arguments(expr).values;
            case ExprKind::dict:
                return evaluate_dict(expr);
            case ExprKind::attribute:
                return get_attribute(expr);
            case ExprKind::index: {
                const Value object = evaluate(*args[0]);
                return index(object, evaluate(*args[1]));
            }
            case ExprKind::slice: {
                const Value object = evaluate(*args[0]), begin = evaluate_optional(args[1]);
                const Value end = evaluate_optional(args[2]);
                return slice(object, begin, end, evaluate_optional(args[3]));
            }
            case ExprKind::call:
                return call(expr);
            case ExprKind::method:
                return call_method(expr.name, evaluate_arguments(expr));
            case ExprKind::filter:
                return apply_filter(expr.name, evaluate_arguments(expr));
            case ExprKind::test:
                return apply_test(expr.name, evaluate_arguments(expr));
            case ExprKind::negate:
                return negate(evaluate(*args[0]));
            case ExprKind::logical_not:
                return !evaluate(*args[0]).is_true();
            case ExprKind::logical_and: {
                Value left = evaluate(*args[0]);
                return left.is_true() ? evaluate(*args[1]) : left;
            }
            case ExprKind::logical_or: {
                Value left = evaluate(*args[0]);
                return left.is_true() ? left : evaluate(*args[1]);
            }
            case ExprKind::binary:
                return evaluate_binary(expr);
            case ExprKind::conditional:
                return evaluate(*args[1]).is_true() ? evaluate(*args[0])
                                                    : evaluate_optional(args[2]);
        }
        return {};
    }

    Arguments evaluate_arguments(const Expr& expr) {
        Arguments result;
        for (const ExprPtr& arg : expr.args) result.values.push_back(evaluate(*arg));
        for (const auto& [name, arg] : expr.named_args) {
            result.named.emplace_back(name, evaluate(*arg));
        }
        line_ = expr.line;
        return result;
    }

    Value evaluate_dict(const Expr& expr) {
        Dict dict;
        for (size_t i = 0; i < expr.args.size(); i += 2) {
            const std::string key = to_text(evaluate(*expr.args[i]));
            dict.set(key, evaluate(*expr.args[i + 1]));
        }
        return dict;
    }

    Value get_attribute(const Expr& expr) {
        const Value object = evaluate(*expr.args[0]);
        line_ = expr.line;
        if (object.is_undefined()) {
            refuse(fmt::format("'{}' of an undefined value", expr.name));
        }
        return index(object, expr.name);
    }

    Value call(const Expr& expr) {
        const Arguments arguments = evaluate_arguments(expr);
        const std::vector<Value>& values = arguments.values;
        if (const auto macro = macros_.find(expr.name); macro != macros_.end())
            return call_macro(*macro->second, arguments);
        if (expr.name == "raise_exception") {
            refuse(values.empty() ? "raise_exception" : to_text(values[0]));
        }
        if (expr.name == "namespace" || expr.name == "dict") {
            if (!values.empty()) refuse(expr.name + " takes named arguments only");
            Dict dict;
            for (const auto& [name, value] : arguments.named) dict.set(name, value);
            dict.is_namespace = expr.name == "namespace";
            return dict;
        }
        if (expr.name == "range") return make_range(values);
        refuse(fmt::format("function '{}' is not supported", expr.name));
    }

    // Its text. It sees its arguments and the variables of the template, not those of the caller.
    Value call_macro(const Node& macro, const Arguments& arguments) {
        const auto& parameters = macro.expr->named_args;
        const std::string& macro_name = macro.expr->name;
        if (arguments.values.size() > parameters.size())
            refuse(fmt::format("macro '{}' takes {} arguments", macro_name, parameters.size()));
        for (const auto& [name, value] : arguments.named)
            if (std::ranges::find(parameters, name, &std::pair<std::string, ExprPtr>::first) ==
                parameters.end())
                refuse(fmt::format("macro '{}' has no argument '{}'", macro_name, name));
        if (++num_calls_ > kMaxCalls) refuse("macros call each other too deeply");
        std::vector<Dict> callers(std::make_move_iterator(scopes_.begin() + kTemplateScopes),
                                  std::make_move_iterator(scopes_.end()));
        scopes_.resize(kTemplateScopes);
        scopes_.emplace_back();
        for (size_t i = 0; i < parameters.size(); ++i) {
            const auto& [name, fallback] = parameters[i];
            const Value* given = arguments.find(i, name);
            scopes_.back().set(name, given != nullptr ? *given : evaluate_optional(fallback));
        }
        std::string text;
        execute(macro.body, &text);
        scopes_.resize(kTemplateScopes);
        scopes_.insert(scopes_.end(), std::make_move_iterator(callers.begin()),
                       std::make_move_iterator(callers.end()));
        --num_calls_;
        return text;
    }

    Value make_range(const std::vector<Value>& values) {
        if (values.empty() || values.size() > 3) refuse("range takes one to three numbers");
        const int64_t begin = values.size() > 1 ? values[0].integer() : 0;
        const int64_t end = values[values.size() > 1 ? 1 : 0].integer();
        const int64_t stride = values.size() > 2 ? values[2].integer() : 1;
        if (stride == 0) refuse("range step is zero");
        List list;
        for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) {
            if (list.size() >= 100'000) refuse("range is longer than 100000");
            ++num_steps_;
            list.push_back(i);
        }
        return list;
    }

    static Value negate(const Value& value) {
        if (value.as<double>()) return -value.number();
        if (!value.is_number()) refuse(fmt::format("minus of {}", value.type_name()));
        return int64_t(0 - uint64_t(value.integer()));
    }

    Value evaluate_binary(const Expr& expr) {
        const Value a = evaluate(*expr.args[0]);
        const Value b = evaluate(*expr.args[1]);
        line_ = expr.line;
        const std::string& op = expr.name;
        if (op == "==") return a == b;
        if (op == "!=") return !(a == b);
        if (op == "in") return contains(b, a);
        if (op == "~") return concatenate(to_text(a), to_text(b));
        if (a.as<std::string>() && b.as<std::string>()) {
            const std::string& left = *a.as<std::string>();
            const std::string& right = *b.as<std::string>();
            if (op == "+") return concatenate(left, right);
            if (op[0] == '<' || op[0] == '>') return compare(left, right, op);
        }
        if (op == "+" && a.list() && b.list()) {
            List list = *a.list();
            list.insert(list.end(), b.list()->begin(), b.list()->end());
            if (list.size() > size_t(kMaxSteps)) refuse("a list is too long");
            return list;
        }
        if (!a.is_number() || !b.is_number()) {
            refuse(fmt::format("{} {} {} is not supported", a.type_name(), op, b.type_name()));
        }
        if (op[0] == '<' || op[0] == '>') return compare(a.number(), b.number(), op);
        if (a.as<double>() || b.as<double>() || op == "/") {
            return calculate(a.number(), b.number(), op);
        }
        return calculate(a.integer(), b.integer(), op);
    }

    static Value concatenate(const std::string& a, const std::string& b) {
        if (a.size() + b.size() > kMaxTextBytes) refuse("a text is too long");
        return a + b;
    }

    template <typename T>
    static bool compare(const T& a, const T& b, const std::string& op) {
        if (op == "<") return a < b;
        if (op == "<=") return a <= b;
        if (op == ">") return a > b;
        return a >= b;
    }

    static Value calculate(double a, double b, const std::string& op) {
        if (op == "+") return a + b;
        if (op == "-") return a - b;
        if (op == "*") return a * b;
        if (b == 0) refuse("division by zero");
        if (op == "/") return a / b;
        if (op == "//") return std::floor(a / b);
        return a - b * std::floor(a / b);
    }

    static Value calculate(int64_t a, int64_t b, const std::string& op) {
        int64_t result = 0;
        bool overflows = false;
        if (op == "+") {
            overflows = __builtin_add_overflow(a, b, &result);
        } else if (op == "-") {
            overflows = __builtin_sub_overflow(a, b, &result);
        } else if (op == "*") {
            overflows = __builtin_mul_overflow(a, b, &result);
        } else if (b == 0) {
            refuse("division by zero");
        } else if (b == -1) {
            overflows = op == "//" && __builtin_sub_overflow(int64_t{0}, a, &result);
        } else {  // Python rounds down
            const int64_t remainder = (a % b + b) % b;
            result = op == "//" ? (a - remainder) / b : remainder;
        }
        if (overflows) refuse("integer overflow");
        return result;
    }

    static constexpr size_t kTemplateScopes = 2;  // what it was given, and what it sets

    const Source& source_;
    std::vector<Dict> scopes_;
    std::map<std::string, const Node*, std::less<>> macros_;
    int num_calls_ = 0, depth_ = 0;
    int64_t num_steps_ = 0;
    int line_ = 0;
};

}  // namespace

std::string render(const Nodes& nodes, const Dict& variables, const Source& source) {
    return Interpreter(variables, source).run(nodes);
}

}  // namespace ferry::jinja
