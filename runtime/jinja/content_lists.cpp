#include "runtime/jinja/content_lists.h"

#include <map>
#include <set>

namespace ferry::jinja {
namespace {

constexpr int kMaxPasses = 8;

bool is_name_of_content(const Expr& expr) {
    return expr.kind == ExprKind::literal && expr.value == Value("content");
}

// Names stand for one thing in the whole template: more may be taken for contents than are.
class ContentUses {
  public:
    explicit ContentUses(const Nodes& nodes) {
        find_macros(nodes);
        for (int i = 0; i < kMaxPasses;
             ++i) {  // a name may stand for another that is set further down
            const size_t num_names = names_.size();
            visit(nodes);
            if (names_.size() == num_names) break;
        }
    }

    bool as_lists() const { return as_lists_; }

  private:
    void find_macros(const Nodes& nodes) {
        for (const Node& node : nodes) {
            if (node.kind == NodeKind::macro) macros_[node.expr->name] = &node;
            find_macros(node.body);
            find_macros(node.orelse);
        }
    }

    void visit(const Nodes& nodes) {
        for (const Node& node : nodes) visit(node);
    }

    void visit(const Node& node) {
        if (node.expr) visit(*node.expr);
        if (node.condition) visit(*node.condition);
        if (node.expr && is_content(*node.expr)) {
            if (node.kind == NodeKind::loop) as_lists_ = true;
            if (node.kind == NodeKind::set) names_.insert(node.targets.back());
        }
        visit(node.body);
        visit(node.orelse);
    }

    void visit(const Expr& expr) {
        for (const ExprPtr& arg : expr.args)
            if (arg) visit(*arg);
        for (const auto& [name, arg] : expr.named_args)
            if (arg) visit(*arg);
        if (expr.kind == ExprKind::call) pass_arguments(expr);
        const bool is_of_lists =
            expr.name == "selectattr" || expr.name == "rejectattr" || expr.name == "map";
        if (expr.kind == ExprKind::filter && is_of_lists && is_content(*expr.args[0]))
            as_lists_ = true;
    }

    void pass_arguments(const Expr& call) {
        const auto macro = macros_.find(call.name);
        if (macro == macros_.end()) return;
        const auto& parameters = macro->second->expr->named_args;
        for (size_t i = 0; i < call.args.size() && i < parameters.size(); ++i)
            if (is_content(*call.args[i])) names_.insert(parameters[i].first);
        for (const auto& [name, arg] : call.named_args)
            if (arg && is_content(*arg)) names_.insert(name);
    }

    bool is_content(const Expr& expr) const {
        const auto& args = expr.args;
        switch (expr.kind) {
            case ExprKind::variable:
                return names_.contains(expr.name);
            case ExprKind::attribute:  // also of a namespace
                return expr.name == "content" || names_.contains(expr.name);
            case ExprKind::index:
                return is_name_of_content(*args[1]);
            case ExprKind::method:
                return expr.name == "get" && args.size() > 1 && is_name_of_content(*args[1]);
            case ExprKind::slice:
            case ExprKind::filter:
                return is_content(*args[0]);
            case ExprKind::logical_and:
                return is_content(*args[1]);
            case ExprKind::logical_or:
                return is_content(*args[0]) || is_content(*args[1]);
            case ExprKind::conditional:
                return is_content(*args[0]) || (args[2] && is_content(*args[2]));
            default:
                return false;
        }
    }

    std::map<std::string, const Node*, std::less<>> macros_;
    std::set<std::string, std::less<>> names_;
    bool as_lists_ = false;
};

}  // namespace

bool takes_content_lists(const Nodes& nodes) {
    return ContentUses(nodes).as_lists();
}

}  // namespace ferry::jinja
