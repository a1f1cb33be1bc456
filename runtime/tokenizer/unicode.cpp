#include "runtime/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/error.h"

namespace ferry::tok {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

bool is_ascii(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

// What a lead byte promises: the number of bytes, and the range of the second one (Unicode table
// 3-7). num_bytes is 0 for a byte that cannot lead.
struct Lead {
    size_t num_bytes;
    uint8_t second_min;
    uint8_t second_max;
};

Lead classify_lead(uint8_t byte) {
    if (byte < 0x80) return {1, 0, 0};
    if (byte < 0xC2) return {0, 0, 0};
    if (byte < 0xE0) return {2, 0x80, 0xBF};
    if (byte < 0xF0) {
        return {3, uint8_t(byte == 0xE0 ? 0xA0 : 0x80), uint8_t(byte == 0xED ? 0x9F : 0xBF)};
    }
    if (byte < 0xF5) {
        return {4, uint8_t(byte == 0xF0 ? 0x90 : 0x80), uint8_t(byte == 0xF4 ? 0x8F : 0xBF)};
    }
    return {0, 0, 0};
}

// Length of the longest well-formed start of a character at `pos`, and whether it is whole.
struct Subpart {
    size_t num_bytes;
    bool is_whole;
    bool is_cut_off;  // by the end of the text only
};

Subpart read_subpart(std::string_view bytes, size_t pos) {
    const Lead lead = classify_lead(uint8_t(bytes[pos]));
    if (lead.num_bytes == 0) return {1, false, false};
    for (size_t i = 1; i < lead.num_bytes; ++i) {
        if (pos + i == bytes.size()) return {i, false, true};
        const uint8_t byte = uint8_t(bytes[pos + i]);
        const uint8_t min = i == 1 ? lead.second_min : 0x80;
        const uint8_t max = i == 1 ? lead.second_max : 0xBF;
        if (byte < min || byte > max) return {i, false, false};
    }
    return {lead.num_bytes, true, false};
}

utf8proc_category_t category(char32_t c) {
    return utf8proc_category(utf8proc_int32_t(c));
}

}  // namespace

char32_t next_char(std::string_view text, size_t* pos) {
    const uint8_t lead = uint8_t(text[*pos]);
    if (lead < 0x80) {
        ++*pos;
        return lead;
    }
    const size_t num_bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    char32_t c = lead & (0xFF >> (num_bytes + 1));
    for (size_t i = 1; i < num_bytes; ++i) c = (c << 6) | (uint8_t(text[*pos + i]) & 0x3F);
    *pos += num_bytes;
    return c;
}

char32_t char_before(std::string_view text, size_t pos) {
    do --pos;
    while (pos > 0 && (uint8_t(text[pos]) & 0xC0) == 0x80);
    return next_char(text, &pos);
}

void append_char(char32_t c, std::string* out) {
    if (c < 0x80) {
        out->push_back(char(c));
    } else if (c < 0x800) {
        out->push_back(char(0xC0 | (c >> 6)));
        out->push_back(char(0x80 | (c & 0x3F)));
    } else if (c < 0x10000) {
        out->push_back(char(0xE0 | (c >> 12)));
        out->push_back(char(0x80 | ((c >> 6) & 0x3F)));
        out->push_back(char(0x80 | (c & 0x3F)));
    } else {
        out->push_back(char(0xF0 | (c >> 18)));
        out->push_back(char(0x80 | ((c >> 12) & 0x3F)));
        out->push_back(char(0x80 | ((c >> 6) & 0x3F)));
        out->push_back(char(0x80 | (c & 0x3F)));
    }
}

size_t append_utf8_lossy(std::string_view bytes, bool is_last, std::string* out) {
    size_t pos = 0;
    while (pos < bytes.size()) {
        const Subpart part = read_subpart(bytes, pos);
        if (part.is_cut_off && !is_last) break;
        if (part.is_whole) {
            out->append(bytes.substr(pos, part.num_bytes));
        } else {
            append_char(kReplacement, out);
        }
        pos += part.num_bytes;
    }
    return pos;
}

bool is_valid_utf8(std::string_view bytes) {
    for (size_t pos = 0; pos < bytes.size();) {
        const Subpart part = read_subpart(bytes, pos);
        if (!part.is_whole) return false;
        pos += part.num_bytes;
    }
    return true;
}

bool is_whitespace(char32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

bool is_mark(char32_t c) {
    const utf8proc_category_t cat = category(c);
    return cat >= UTF8PROC_CATEGORY_MN && cat <= UTF8PROC_CATEGORY_ME;
}

bool is_numeric(char32_t c) {
    const utf8proc_category_t cat = category(c);
    return cat >= UTF8PROC_CATEGORY_ND && cat <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
    if (c < 0x80) {
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    }
    const utf8proc_category_t cat = category(c);
    return cat >= UTF8PROC_CATEGORY_PC && cat <= UTF8PROC_CATEGORY_PO;
}

bool is_word(char32_t c) {
    const utf8proc_category_t cat = category(c);
    if (cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_NL) return true;  // L, M, Nd, Nl
    if (cat == UTF8PROC_CATEGORY_PC) return true;
    if (c == 0x200C || c == 0x200D) return true;  // Join_Control
    // the symbols that are Other_Alphabetic: circled and squared letters
    return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

std::string normalize(std::string_view text, NormalForm form) {
    if (is_ascii(text)) return std::string(text);
    int options = UTF8PROC_STABLE;
    options |=
        form == NormalForm::nfc || form == NormalForm::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
    utf8proc_uint8_t* mapped = nullptr;
    const utf8proc_ssize_t num_bytes =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     utf8proc_ssize_t(text.size()), &mapped, utf8proc_option_t(options));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
    if (num_bytes < 0) {
        throw Error(ErrorKind::input, "text of {} bytes cannot be normalized: {}", text.size(),
                    utf8proc_errmsg(num_bytes));
    }
    return std::string(reinterpret_cast<const char*>(mapped), size_t(num_bytes));
}

std::string lowercase(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t pos = 0; pos < text.size();) {
        const char32_t c = next_char(text, &pos);
        if (c == 0x130) {
            out += "i\u0307";  // the only character whose lower case is two characters
        } else {
            append_char(char32_t(utf8proc_tolower(utf8proc_int32_t(c))), &out);
        }
    }
    return out;
}

}  // namespace ferry::tok
