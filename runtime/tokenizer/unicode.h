// Unicode for the tokenizer: UTF-8 stepping and repair, character classes, normal forms.
// The tables are those of utf8proc (Unicode 15); unicode.cpp is the only file that includes it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ferry::tok {

// A range of bytes [begin, end).
struct Span {
    size_t begin = 0;
    size_t end = 0;
    bool empty() const { return begin == end; }
    bool operator==(const Span&) const = default;
};

// Decodes the character at `*pos` of valid UTF-8 and moves `*pos` past it.
char32_t next_char(std::string_view text, size_t* pos);
// The character that ends at `pos` > 0 of valid UTF-8.
char32_t char_before(std::string_view text, size_t pos);
void append_char(char32_t c, std::string* out);

// Appends `bytes` to `out`; what is not UTF-8 becomes U+FFFD, one per maximal subpart (Unicode
// 3.9, as Python's errors="replace" and Rust's from_utf8_lossy do). Unless `is_last`, a valid but
// unfinished character at the end is left over. Returns the number of bytes consumed.
size_t append_utf8_lossy(std::string_view bytes, bool is_last, std::string* out);
bool is_valid_utf8(std::string_view bytes);

bool is_whitespace(char32_t c);   // White_Space
bool is_word(char32_t c);         // UTS 18 \w: Alphabetic, M, Nd, Pc, Join_Control
bool is_numeric(char32_t c);      // Nd, Nl, No
bool is_punctuation(char32_t c);  // P*, and the ASCII symbols
bool is_mark(char32_t c);         // M*

enum class NormalForm { nfc, nfd, nfkc, nfkd };
std::string normalize(std::string_view text, NormalForm form);
std::string lowercase(std::string_view text);

}  // namespace ferry::tok
