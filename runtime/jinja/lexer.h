// Cuts a template into tokens. White space is treated as Transformers sets Jinja up: trim_blocks
// and lstrip_blocks are on, the last newline of the template is dropped.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace ferry::jinja {

// Where a template comes from, for messages.
struct Source {
    std::string name;
    // Throws Error(checkpoint): "name:line: what".
    [[noreturn]] void fail(int line, std::string_view what) const;
};

enum class TokenKind {
    text,
    block_begin,
    block_end,
    print_begin,
    print_end,
    name,
    string,
    integer,
    number,
    op,
    end
};

struct Token {
    TokenKind kind;
    std::string text;  // without quotes and escapes
    int line;
};

// The last token is TokenKind::end. Throws Error(checkpoint) for what cannot be cut.
std::vector<Token> tokenize(std::string_view text, const Source& source);

}  // namespace ferry::jinja
