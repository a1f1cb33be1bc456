// The syntax tree of a template, and its parser.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/jinja/lexer.h"
#include "runtime/jinja/value.h"

namespace ferry::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
    literal,      // value
    variable,     // name
    list,         // args
    dict,         // args: key, value, key, value …
    attribute,    // args[0].name
    index,        // args[0][args[1]]
    slice,        // args[0][args[1]:args[2]:args[3]], null where left out
    call,         // name(args, named_args)
    method,       // args[0].name(rest of args, named_args)
    filter,       // args[0] | name(rest of args, named_args)
    test,         // args[0] is name(rest of args)
    negate,       // -args[0]
    logical_not,  // not args[0]
    logical_and,
    logical_or,
    binary,       // args[0] name args[1]: + - * / // % ~ == != < <= > >= in
    conditional,  // args[0] if args[1] else args[2] (null where left out)
};

struct Expr {
    ExprKind kind;
    int line;
    std::string name;
    Value value;
    std::vector<ExprPtr> args;
    std::vector<std::pair<std::string, ExprPtr>> named_args;
};

enum class NodeKind {
    text,    // text
    print,   // {{ expr }}
    branch,  // if expr body else orelse
    loop,    // for targets in expr (if condition) body else orelse
    set,     // targets[0] (or targets[0].targets[1]) = expr, or the text of body
    macro,   // expr is name(named_args): the parameters, with defaults or null; body
    stop,    // break
    next,    // continue
};

struct Node;
using Nodes = std::vector<Node>;

struct Node {
    NodeKind kind;
    int line;
    std::string text;
    std::vector<std::string> targets;
    ExprPtr expr;
    ExprPtr condition;
    Nodes body;
    Nodes orelse;
};

// Throws Error(checkpoint) that names line and construct for what is not in the subset (see
// runtime/chat_template.h).
Nodes parse(std::string_view text, const Source& source);

}  // namespace ferry::jinja
