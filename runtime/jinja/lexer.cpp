#include "runtime/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry::jinja {
namespace {

// Bounds the depth of the tree that a long chain of operators makes.
constexpr size_t kMaxTokensPerTag = 4096;

bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

// As Jinja reads a file: one kind of newline, and not the last one.
std::string normalize_newlines(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\r') {
            out.push_back('\n');
            if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
        } else {
            out.push_back(text[i]);
        }
    }
    if (out.ends_with('\n')) out.pop_back();
    return out;
}

class Lexer {
  public:
    Lexer(std::string_view text, const Source& source)
        : text_(normalize_newlines(text)), source_(source) {}

    std::vector<Token> run() {
        while (pos_ < text_.size()) {
            const size_t tag = find_tag();
            read_text(tag);
            if (tag < text_.size()) read_tag();
        }
        add(TokenKind::end, "end of template");
        return std::move(tokens_);
    }

  private:
    bool at(std::string_view what) const { return text_.compare(pos_, what.size(), what) == 0; }

    void advance(size_t num_bytes) {
        const auto begin = text_.begin() + int64_t(pos_);
        line_ += int(std::count(begin, begin + int64_t(num_bytes), '\n'));
        pos_ += num_bytes;
    }

    void add(TokenKind kind, std::string text) {
        tokens_.push_back({kind, std::move(text), line_});
    }

    size_t find_tag() const {
        for (size_t i = pos_; i + 1 < text_.size(); ++i) {
            const char next = text_[i + 1];
            if (text_[i] == '{' && (next == '{' || next == '%' || next == '#')) return i;
        }
        return text_.size();
    }

    // The text up to the tag at `end`, less the white space that the tag takes away.
    void read_text(size_t end) {
        size_t kept_end = end;
        if (end < text_.size()) {
            const char mark = end + 2 < text_.size() ? text_[end + 2] : ' ';
            if (mark == '-') {
                while (kept_end > pos_ && is_space(text_[kept_end - 1])) --kept_end;
            } else if (mark != '+' && text_[end + 1] != '{') {
                size_t line_begin = end;
                while (line_begin > pos_ && is_space(text_[line_begin - 1]) &&
                       text_[line_begin - 1] != '\n') {
                    --line_begin;
                }
                const bool is_line_start =
                    line_begin == pos_ ? starts_line_ : text_[line_begin - 1] == '\n';
                if (is_line_start) kept_end = line_begin;
            }
        }
        if (kept_end > pos_) add(TokenKind::text, text_.substr(pos_, kept_end - pos_));
        advance(end - pos_);
    }

    void read_tag() {
        const char kind = text_[pos_ + 1];
        const int begin_line = line_;
        advance(2);
        if (kind == '#') {
            const size_t end = text_.find("#}", pos_);
            if (end == std::string::npos) source_.fail(begin_line, "comment has no end");
            const bool strips = text_[end - 1] == '-' && end > pos_;
            advance(end + 2 - pos_);
            end_tag(strips, true);
            return;
        }
        const bool is_block = kind == '%';
        add(is_block ? TokenKind::block_begin : TokenKind::print_begin, is_block ? "{%" : "{{");
        if (at("-") || at("+")) advance(1);
        const std::string_view close = is_block ? "%}" : "}}";
        const size_t first_token = tokens_.size();
        for (int depth = 0;;) {
            while (pos_ < text_.size() && is_space(text_[pos_])) advance(1);
            if (pos_ == text_.size()) source_.fail(begin_line, "tag has no end");
            if (depth == 0 &&
                (at(close) || ((at("-") || at("+")) && is_close_at(pos_ + 1, close)))) {
                break;
            }
            if (tokens_.size() - first_token > kMaxTokensPerTag) {
                source_.fail(begin_line, "tag is too long");
            }
            read_token(&depth);
        }
        const bool strips = at("-");
        const bool keeps = at("+");
        add(is_block ? TokenKind::block_end : TokenKind::print_end, std::string(close));
        advance(strips || keeps ? 3 : 2);
        end_tag(strips, is_block && !keeps);
    }

    bool is_close_at(size_t pos, std::string_view close) const {
        return text_.compare(pos, close.size(), close) == 0;
    }

    // White space behind a tag: all of it, or one newline.
    void end_tag(bool strips, bool trims_newline) {
        const size_t begin = pos_;
        if (strips) {
            while (pos_ < text_.size() && is_space(text_[pos_])) advance(1);
        } else if (trims_newline && at("\n")) {
            advance(1);
        }
        starts_line_ = pos_ > begin && text_[pos_ - 1] == '\n';
    }

    void read_token(int* depth) {
        const char c = text_[pos_];
        size_t end = pos_;
        if (c == '"' || c == '\'') return read_string(c);
        if (is_digit(c)) return read_number();
        if (is_name(c)) {
            while (end < text_.size() && is_name(text_[end])) ++end;
            return take(TokenKind::name, end);
        }
        constexpr std::array<std::string_view, 6> kTwo = {"==", "!=", "<=", ">=", "//", "**"};
        for (const std::string_view op : kTwo) {
            if (at(op)) return take(TokenKind::op, pos_ + 2);
        }
        if (std::string_view("+-*/%~<>=.:|,()[]{}").find(c) == std::string_view::npos) {
            source_.fail(line_, fmt::format("unexpected character '{}'", c));
        }
        if (c == '(' || c == '[' || c == '{') ++*depth;
        if (c == ')' || c == ']' || c == '}') --*depth;
        take(TokenKind::op, pos_ + 1);
    }

    void take(TokenKind kind, size_t end) {
        add(kind, text_.substr(pos_, end - pos_));
        advance(end - pos_);
    }

    void read_number() {
        size_t end = pos_;
        while (end < text_.size() && is_digit(text_[end])) ++end;
        const bool is_fraction =
            end + 1 < text_.size() && text_[end] == '.' && is_digit(text_[end + 1]);
        if (is_fraction) {
            for (++end; end < text_.size() && is_digit(text_[end]);) ++end;
        }
        if (end - pos_ > 18) source_.fail(line_, "number has too many digits");
        take(is_fraction ? TokenKind::number : TokenKind::integer, end);
    }

    void read_string(char quote) {
        std::string value;
        const int begin_line = line_;
        size_t i = pos_ + 1;
        for (; i < text_.size() && text_[i] != quote; ++i) {
            if (text_[i] != '\\' || i + 1 == text_.size()) {
                value.push_back(text_[i]);
            } else {
                i = read_escape(i + 1, &value);
            }
        }
        if (i >= text_.size()) source_.fail(begin_line, "string has no end");
        add(TokenKind::string, value);
        advance(i + 1 - pos_);
    }

    // The escape whose letter is at `i`; returns the position of its last character.
    size_t read_escape(size_t i, std::string* value) const {
        constexpr std::string_view kLetters = "nrtabfv\\'\"";
        constexpr std::string_view kMeanings = "\n\r\t\a\b\f\v\\'\"";
        const char c = text_[i];
        if (const size_t idx = kLetters.find(c); idx != std::string_view::npos) {
            value->push_back(kMeanings[idx]);
            return i;
        }
        const size_t num_digits = c == 'u' ? 4 : c == 'U' ? 8 : c == 'x' ? 2 : 0;
        const std::string digits = text_.substr(i + 1, num_digits);
        const bool is_hex = digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
        if (num_digits == 0 || digits.size() != num_digits || !is_hex) {
            source_.fail(line_, fmt::format("escape '\\{}' is not supported", c));
        }
        const unsigned long code = std::stoul(digits, nullptr, 16);
        if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
            source_.fail(line_, "escape is not a character");
        }
        tok::append_char(char32_t(code), value);
        return i + num_digits;
    }

    const std::string text_;
    const Source& source_;
    std::vector<Token> tokens_;
    size_t pos_ = 0;
    int line_ = 1;
    bool starts_line_ = true;  // the text at pos_ stands at the start of a line
};

}  // namespace

void Source::fail(int line, std::string_view what) const {
    throw Error(ErrorKind::checkpoint, fmt::format("{}:{}: {}", name, line, what));
}

std::vector<Token> tokenize(std::string_view text, const Source& source) {
    return Lexer(text, source).run();
}

}  // namespace ferry::jinja
