#include <fmt/core.h>

#include <algorithm>
#include <initializer_list>

#include "runtime/jinja/builtins.h"
#include "runtime/jinja/syntax.h"

namespace ferry::jinja {
namespace {

constexpr int kMaxDepth = 100;

class Parser {
  public:
    Parser(std::string_view text, const Source& source)
        : source_(source), tokens_(tokenize(text, source)) {}

    Nodes run() { return parse_nodes({}); }

  private:
    // Nesting of blocks and expressions is bounded, so that the stack is.
    struct DepthGuard {
        explicit DepthGuard(Parser* parser) : parser_(parser) {
            if (++parser->depth_ > kMaxDepth) parser->fail("nested too deeply");
        }
        ~DepthGuard() { --parser_->depth_; }
        Parser* parser_;
    };

    // Blocks whose variables are their own: a macro sees those of the template alone.
    struct ScopeGuard {
        explicit ScopeGuard(Parser* parser) : parser_(parser) { ++parser->num_scopes_; }
        ~ScopeGuard() { --parser_->num_scopes_; }
        Parser* parser_;
    };

    const Token& peek(size_t ahead = 0) const {
        return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)];
    }
    const Token& take() {
        const Token& token = peek();
        if (pos_ + 1 < tokens_.size()) ++pos_;
        return token;
    }
    [[noreturn]] void fail(std::string_view what) const { source_.fail(peek().line, what); }

    bool is(TokenKind kind, std::string_view text, size_t ahead = 0) const {
        return peek(ahead).kind == kind && peek(ahead).text == text;
    }
    bool is_op(std::string_view text) const { return is(TokenKind::op, text); }
    bool is_word(std::string_view text) const { return is(TokenKind::name, text); }
    bool accept(TokenKind kind, std::string_view text) {
        const bool found = is(kind, text);
        if (found) take();
        return found;
    }
    bool accept_op(std::string_view text) { return accept(TokenKind::op, text); }
    bool accept_word(std::string_view text) { return accept(TokenKind::name, text); }
    void expect_op(std::string_view text) {
        if (!accept_op(text)) fail(fmt::format("expected '{}', found '{}'", text, peek().text));
    }
    std::string expect_name() {
        if (peek().kind != TokenKind::name) {
            fail(fmt::format("expected a name, found '{}'", peek().text));
        }
        return take().text;
    }
    void expect(TokenKind kind) {
        if (peek().kind != kind) fail(fmt::format("unexpected '{}'", peek().text));
        take();
    }

    // ---- statements

    // Nodes up to a block that starts with one of `ends`, whose name is left to be read, or to the
    // end of the template when there are none.
    Nodes parse_nodes(std::initializer_list<std::string_view> ends) {
        const DepthGuard guard(this);
        const int begin_line = pos_ > 0 ? tokens_[pos_ - 1].line : 1;
        Nodes nodes;
        for (;;) {
            const Token& token = take();
            if (token.kind == TokenKind::text) {
                nodes.push_back({NodeKind::text, token.line, token.text, {}, {}, {}, {}, {}});
            } else if (token.kind == TokenKind::print_begin) {
                Node node{NodeKind::print, token.line, "", {}, parse_expr(), {}, {}, {}};
                expect(TokenKind::print_end);
                nodes.push_back(std::move(node));
            } else if (token.kind == TokenKind::block_begin) {
                if (std::find(ends.begin(), ends.end(), peek().text) != ends.end()) return nodes;
                parse_statement(&nodes);
            } else {
                if (ends.size() == 0) return nodes;
                source_.fail(begin_line, fmt::format("block has no '{}'", *(ends.end() - 1)));
            }
        }
    }

    void parse_statement(Nodes* nodes) {
        const int line = peek().line;
        const std::string name = expect_name();
        if (name == "if") {
            nodes->push_back(parse_branch(line));
        } else if (name == "for") {
            nodes->push_back(parse_loop(line));
        } else if (name == "set") {
            nodes->push_back(parse_set(line));
        } else if (name == "macro") {
            nodes->push_back(parse_macro(line));
        } else if (name == "break" || name == "continue") {
            const NodeKind kind = name == "break" ? NodeKind::stop : NodeKind::next;
            nodes->push_back({kind, line, "", {}, {}, {}, {}, {}});
            expect(TokenKind::block_end);
        } else if (name == "generation" || name == "endgeneration") {
            expect(TokenKind::block_end);  // marks what a model is trained on: nothing to render
        } else {
            source_.fail(line, fmt::format("statement '{}' is not supported", name));
        }
    }

    // Reads the name that ended a block and the end of its tag.
    std::string take_block_end() {
        std::string name = take().text;
        if (name != "elif") expect(TokenKind::block_end);
        return name;
    }

    Node parse_branch(int line) {
        const DepthGuard guard(this);
        Node node{NodeKind::branch, line, "", {}, parse_expr(), {}, {}, {}};
        expect(TokenKind::block_end);
        node.body = parse_nodes({"elif", "else", "endif"});
        const int end_line = peek().line;
        const std::string end = take_block_end();
        if (end == "elif") {
            node.orelse.push_back(parse_branch(end_line));
        } else if (end == "else") {
            node.orelse = parse_nodes({"endif"});
            take_block_end();
        }
        return node;
    }

    Node parse_loop(int line) {
        Node node{NodeKind::loop, line, "", {}, {}, {}, {}, {}};
        do node.targets.push_back(expect_name());
        while (accept_op(","));
        if (!accept_word("in")) fail("expected 'in'");
        node.expr = parse_or();
        if (accept_word("if")) node.condition = parse_expr();
        if (is_word("recursive")) fail("a recursive 'for' is not supported");
        expect(TokenKind::block_end);
        const ScopeGuard scope(this);
        node.body = parse_nodes({"else", "endfor"});
        if (take_block_end() == "else") {
            node.orelse = parse_nodes({"endfor"});
            take_block_end();
        }
        return node;
    }

    Node parse_set(int line) {
        Node node{NodeKind::set, line, "", {}, {}, {}, {}, {}};
        node.targets.push_back(expect_name());
        if (accept_op(".")) node.targets.push_back(expect_name());
        if (is_op(",")) fail("'set' of several names is not supported");
        if (accept_op("=")) {
            node.expr = parse_expr();
            expect(TokenKind::block_end);
        } else {
            if (is_op("|")) fail("'set' with a filter is not supported");
            expect(TokenKind::block_end);
            const ScopeGuard scope(this);
            node.body = parse_nodes({"endset"});
            take_block_end();
        }
        return node;
    }

    Node parse_macro(int line) {
        if (num_scopes_ > 0) source_.fail(line, "a macro within another block is not supported");
        ExprPtr head = make(ExprKind::call, line, expect_name());
        expect_op("(");
        while (!accept_op(")")) {
            head->named_args.emplace_back(expect_name(), nullptr);
            if (accept_op("=")) head->named_args.back().second = parse_expr();
            if (!is_op(")")) expect_op(",");
        }
        expect(TokenKind::block_end);
        const ScopeGuard scope(this);
        Node node{NodeKind::macro, line, "", {}, std::move(head), {}, {}, {}};
        node.body = parse_nodes({"endmacro"});
        take_block_end();
        return node;
    }

    // ---- expressions, loosest binding first

    ExprPtr make(ExprKind kind, int line, std::string name = "") const {
        auto expr = std::make_unique<Expr>();
        expr->kind = kind;
        expr->line = line;
        expr->name = std::move(name);
        return expr;
    }

    ExprPtr make_binary(ExprKind kind, std::string name, ExprPtr left, ExprPtr right) const {
        ExprPtr expr = make(kind, left->line, std::move(name));
        expr->args.push_back(std::move(left));
        expr->args.push_back(std::move(right));
        return expr;
    }

    ExprPtr make_literal(Value value) {
        ExprPtr expr = make(ExprKind::literal, peek().line);
        expr->value = std::move(value);
        take();
        return expr;
    }

    ExprPtr parse_expr() {
        const DepthGuard guard(this);
        ExprPtr expr = parse_or();
        while (accept_word("if")) {
            ExprPtr conditional = make(ExprKind::conditional, expr->line);
            conditional->args.push_back(std::move(expr));
            conditional->args.push_back(parse_or());
            conditional->args.push_back(accept_word("else") ? parse_expr() : nullptr);
            expr = std::move(conditional);
        }
        return expr;
    }

    ExprPtr parse_or() {
        ExprPtr left = parse_and();
        while (accept_word("or")) {
            left = make_binary(ExprKind::logical_or, "or", std::move(left), parse_and());
        }
        return left;
    }

    ExprPtr parse_and() {
        ExprPtr left = parse_not();
        while (accept_word("and")) {
            left = make_binary(ExprKind::logical_and, "and", std::move(left), parse_not());
        }
        return left;
    }

    ExprPtr parse_not() {
        if (!is_word("not")) return parse_comparison();
        const DepthGuard guard(this);
        ExprPtr expr = make(ExprKind::logical_not, take().line);
        expr->args.push_back(parse_not());
        return expr;
    }

    ExprPtr parse_comparison() {
        ExprPtr left = parse_sum();
        for (int num = 0;; ++num) {
            const bool is_not_in = is_word("not") && is(TokenKind::name, "in", 1);
            const bool is_comparison =
                peek().kind == TokenKind::op &&
                std::string_view(" == != < <= > >= ").find(" " + peek().text + " ") !=
                    std::string_view::npos;
            if (!is_not_in && !is_word("in") && !is_comparison) return left;
            if (num > 0) fail("a chain of comparisons is not supported");
            if (is_not_in) take();
            const std::string op = take().text;
            left = make_binary(ExprKind::binary, op, std::move(left), parse_sum());
            if (is_not_in) {
                ExprPtr negated = make(ExprKind::logical_not, left->line);
                negated->args.push_back(std::move(left));
                left = std::move(negated);
            }
        }
    }

    ExprPtr parse_sum() {
        ExprPtr left = parse_concat();
        while (is_op("+") || is_op("-")) {
            const std::string op = take().text;
            left = make_binary(ExprKind::binary, op, std::move(left), parse_concat());
        }
        return left;
    }

    ExprPtr parse_concat() {
        ExprPtr left = parse_product();
        while (accept_op("~")) {
            left = make_binary(ExprKind::binary, "~", std::move(left), parse_product());
        }
        return left;
    }

    ExprPtr parse_product() {
        ExprPtr left = parse_unary(true);
        while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
            const std::string op = take().text;
            left = make_binary(ExprKind::binary, op, std::move(left), parse_unary(true));
        }
        if (is_op("**")) fail("operator '**' is not supported");
        return left;
    }

    ExprPtr parse_unary(bool with_filters) {
        const DepthGuard guard(this);
        ExprPtr expr;
        if (is_op("-")) {
            expr = make(ExprKind::negate, take().line);
            expr->args.push_back(parse_unary(false));
        } else if (accept_op("+")) {
            expr = parse_unary(false);
        } else {
            expr = parse_postfix(parse_primary());
        }
        return with_filters ? parse_filters(std::move(expr)) : std::move(expr);
    }

    ExprPtr parse_primary() {
        const Token& token = peek();
        switch (token.kind) {
            case TokenKind::name: {
                if (token.text == "true" || token.text == "True") return make_literal(true);
                if (token.text == "false" || token.text == "False") return make_literal(false);
                if (token.text == "none" || token.text == "None") return make_literal(None{});
                return make(ExprKind::variable, token.line, take().text);
            }
            case TokenKind::string: {
                std::string text;
                ExprPtr expr = make(ExprKind::literal, token.line);
                while (peek().kind == TokenKind::string) text += take().text;
                expr->value = text;
                return expr;
            }
            case TokenKind::integer:
                return make_literal(int64_t{std::stoll(token.text)});
            case TokenKind::number:
                return make_literal(std::stod(token.text));
            case TokenKind::op:
                if (accept_op("(")) return parse_parentheses();
                if (accept_op("[")) return parse_list("]", nullptr);
                if (accept_op("{")) return parse_dict();
                [[fallthrough]];
            default:
                fail(fmt::format("unexpected '{}'", token.text));
        }
    }

    // (expr) or a tuple, which is treated as a list.
    ExprPtr parse_parentheses() {
        if (is_op(")")) return parse_list(")", nullptr);
        ExprPtr first = parse_expr();
        if (accept_op(")")) return first;
        expect_op(",");
        return parse_list(")", std::move(first));
    }

    ExprPtr parse_list(std::string_view close, ExprPtr first) {
        ExprPtr expr = make(ExprKind::list, peek().line);
        if (first) expr->args.push_back(std::move(first));
        while (!accept_op(close)) {
            expr->args.push_back(parse_expr());
            if (!is_op(close)) expect_op(",");
        }
        return expr;
    }

    ExprPtr parse_dict() {
        ExprPtr expr = make(ExprKind::dict, peek().line);
        while (!accept_op("}")) {
            expr->args.push_back(parse_expr());
            expect_op(":");
            expr->args.push_back(parse_expr());
            if (!is_op("}")) expect_op(",");
        }
        return expr;
    }

    ExprPtr parse_postfix(ExprPtr expr) {
        for (;;) {
            const int line = peek().line;
            if (accept_op(".")) {
                ExprPtr next = make(ExprKind::attribute, line, expect_name());
                if (is_op("(")) next->kind = ExprKind::method;
                next->args.push_back(std::move(expr));
                if (next->kind == ExprKind::method) parse_arguments(next.get());
                expr = std::move(next);
            } else if (accept_op("[")) {
                expr = parse_subscript(std::move(expr));
            } else if (is_op("(")) {
                if (expr->kind != ExprKind::variable) fail("a call of this is not supported");
                expr->kind = ExprKind::call;
                parse_arguments(expr.get());
            } else {
                return expr;
            }
        }
    }

    ExprPtr parse_subscript(ExprPtr object) {
        ExprPtr expr = make(ExprKind::index, object->line);
        expr->args.push_back(std::move(object));
        expr->args.push_back(is_op(":") ? nullptr : parse_expr());
        if (is_op(":")) expr->kind = ExprKind::slice;
        while (expr->args.size() < 4 && accept_op(":")) {
            expr->args.push_back(is_op(":") || is_op("]") ? nullptr : parse_expr());
        }
        if (expr->kind == ExprKind::slice) expr->args.resize(4);
        expect_op("]");
        return expr;
    }

    void parse_arguments(Expr* expr) {
        expect_op("(");
        while (!accept_op(")")) {
            if (peek().kind == TokenKind::name && is(TokenKind::op, "=", 1)) {
                std::string name = take().text;
                take();
                expr->named_args.emplace_back(std::move(name), parse_expr());
            } else {
                if (!expr->named_args.empty()) fail("a positional argument after a named one");
                expr->args.push_back(parse_expr());
            }
            if (!is_op(")")) expect_op(",");
        }
    }

    ExprPtr parse_filters(ExprPtr expr) {
        for (;;) {
            const int line = peek().line;
            if (accept_op("|")) {
                ExprPtr filter = make(ExprKind::filter, line, expect_name());
                if (!has_filter(filter->name)) {
                    source_.fail(line, fmt::format("filter '{}' is not supported", filter->name));
                }
                filter->args.push_back(std::move(expr));
                if (is_op("(")) parse_arguments(filter.get());
                expr = std::move(filter);
            } else if (accept_word("is")) {
                expr = parse_test(std::move(expr), line);
            } else {
                return expr;
            }
        }
    }

    ExprPtr parse_test(ExprPtr expr, int line) {
        const bool is_negated = accept_word("not");
        ExprPtr test = make(ExprKind::test, line, expect_name());
        if (!has_test(test->name)) {
            source_.fail(line, fmt::format("test '{}' is not supported", test->name));
        }
        test->args.push_back(std::move(expr));
        if (is_op("(")) {
            parse_arguments(test.get());
        } else if (starts_bare_argument()) {
            test->args.push_back(parse_postfix(parse_primary()));
        }
        if (!is_negated) return test;
        ExprPtr negated = make(ExprKind::logical_not, line);
        negated->args.push_back(std::move(test));
        return negated;
    }

    // `x is divisibleby 3`: an argument without parentheses.
    bool starts_bare_argument() const {
        const Token& token = peek();
        if (token.kind == TokenKind::name) {
            return std::string_view(" else or and not is in if ").find(" " + token.text + " ") ==
                   std::string_view::npos;
        }
        return token.kind == TokenKind::string || token.kind == TokenKind::integer ||
               token.kind == TokenKind::number || is_op("[") || is_op("{");
    }

    const Source& source_;
    const std::vector<Token> tokens_;
    size_t pos_ = 0;
    int depth_ = 0;
    int num_scopes_ = 0;
};

}  // namespace

Nodes parse(std::string_view text, const Source& source) {
    return Parser(text, source).run();
}

}  // namespace ferry::jinja
