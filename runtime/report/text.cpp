#include "runtime/report/text.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace ferry::report {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
constexpr std::string_view kNarrowSpace = "\xE2\x80\xAF";
constexpr std::string_view kMinus = "\xE2\x88\x92";
constexpr std::string_view kEllipsis = "\xE2\x80\xA6";

// Bytes of the well-formed UTF-8 character at the front, 0 when it is none.
size_t character_bytes(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char first = byte(0);
    size_t length = 1;
    if (first >= 0x80) length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (first > 0xF4 || length == 0 || length > text.size()) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((byte(i) & 0xC0) != 0x80) return 0;
    if (length > 1) {
        const unsigned char second = byte(1);
        if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
            (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F))
            return 0;
    }
    return length;
}

// Calls fn(character) with every character, broken bytes as U+FFFD.
template <typename Fn>
void for_each_character(std::string_view text, Fn&& fn) {
    while (!text.empty()) {
        const size_t length = character_bytes(text);
        fn(length == 0 ? kReplacement : text.substr(0, length));
        text.remove_prefix(std::max<size_t>(1, length));
    }
}

bool is_control(std::string_view character) {
    const auto first = static_cast<unsigned char>(character[0]);
    if (character.size() == 1) return first < 0x20 || first == 0x7F;
    return first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

std::string grouped(const std::string& digits) {
    if (digits.size() < 5) return digits;  // 1234 stays whole
    std::string result;
    for (size_t i = 0; i < digits.size(); ++i) {
        if (i > 0 && (digits.size() - i) % 3 == 0) result += kNarrowSpace;
        result += digits[i];
    }
    return result;
}

double character_width(std::string_view character) {  // of the font's size
    if (character.size() > 3) return 1.3;
    if (character.size() == 3) return character < "\xE2\x80\xB0" ? 0.6 : 1.05;
    if (character.size() == 2) return 0.66;
    constexpr std::string_view kNarrow = "iljtf.,:;|!'()[] I/";
    constexpr std::string_view kWide = "mwMW@%";
    if (kNarrow.find(character[0]) != std::string_view::npos) return 0.38;
    if (kWide.find(character[0]) != std::string_view::npos) return 0.98;
    if (character[0] >= 'A' && character[0] <= 'Z') return 0.72;
    return 0.62;
}

}  // namespace

std::string escape_html(std::string_view text) {
    std::string result;
    result.reserve(text.size() + text.size() / 8);
    for_each_character(text, [&](std::string_view character) {
        if (character == "&")
            result += "&amp;";
        else if (character == "<")
            result += "&lt;";
        else if (character == ">")
            result += "&gt;";
        else if (character == "\"")
            result += "&quot;";
        else if (character == "'")
            result += "&#39;";
        else if (character == "\n" || character == "\t")
            result += ' ';
        else
            result += is_control(character) ? kReplacement : character;
    });
    return result;
}

std::string escape_markdown(std::string_view text) {
    std::string result;
    for_each_character(text, [&](std::string_view character) {
        if (character == "\n" || character == "\t")
            result += ' ';
        else if (is_control(character))
            result += kReplacement;
        else if (std::string_view("\\`*_{}[]<>#|~").find(character) != std::string_view::npos)
            (result += '\\') += character;
        else
            result += character;
    });
    return result;
}

std::string format_number(double value, int digits) {
    if (!std::isfinite(value)) return "\xE2\x80\x93";
    if (value == 0) return "0";
    const double magnitude = std::abs(value);
    if (magnitude >= 1e15 || magnitude < 1e-6) return fmt::format("{:.{}g}", value, digits);
    const int before = static_cast<int>(std::floor(std::log10(magnitude))) + 1;
    std::string text = fmt::format("{:.{}f}", magnitude, std::max(0, digits - before));
    if (const size_t point = text.find('.'); point != std::string::npos) {
        text.erase(text.find_last_not_of('0') + 1);
        if (text.back() == '.') text.pop_back();
    }
    const size_t point = std::min(text.find('.'), text.size());
    text = grouped(text.substr(0, point)) + text.substr(point);
    return (value < 0 && text != "0" ? std::string(kMinus) : "") + text;
}

std::string words_of(std::string name) {
    std::ranges::replace(name, '_', ' ');
    return name;
}

std::string format_quantity(double value, std::string_view unit, int digits) {
    struct Prefix {
        double factor;
        const char* name;
    };
    constexpr std::array<Prefix, 9> kPrefixes{{{1e15, "P"},
                                               {1e12, "T"},
                                               {1e9, "G"},
                                               {1e6, "M"},
                                               {1e3, "k"},
                                               {1, ""},
                                               {1e-3, "m"},
                                               {1e-6, "\xC2\xB5"},
                                               {1e-9, "n"}}};
    const std::string separator = unit.empty() ? "" : "\xC2\xA0";
    if (value == 0 || !std::isfinite(value) || unit == "%")
        return format_number(value, digits) + separator + std::string(unit);
    const bool takes_small = !unit.empty() && unit[0] == 's';
    const auto fits = [&](const Prefix& prefix) {
        return std::abs(value) >= prefix.factor * (1 - 1e-12) &&
               (unit != "s" || prefix.factor <= 1);
    };
    const auto smallest = takes_small ? kPrefixes.end() - 1 : kPrefixes.begin() + 5;
    const Prefix& prefix = *std::find_if(kPrefixes.begin(), smallest, fits);
    const std::string number = format_number(value / prefix.factor, digits);
    const std::string gap = unit.empty() && *prefix.name != '\0' ? "\xC2\xA0" : separator;
    return number + gap + prefix.name + std::string(unit);
}

std::string format_percent_change(double ratio) {
    const double percent = ratio * 100;
    if (!std::isfinite(percent)) return "\xE2\x80\x93";
    const double magnitude = std::abs(percent);
    const std::string number = fmt::format("{:.{}f}", magnitude, magnitude < 10 ? 1 : 0);
    const bool none = number.find_first_not_of("0.") == std::string::npos;
    const std::string sign = none ? "\xC2\xB1" : percent < 0 ? std::string(kMinus) : "+";
    return sign + (none ? "0" : number) + "\xC2\xA0%";
}

double text_width(std::string_view text, double font_px) {
    double width = 0;
    for_each_character(text, [&](std::string_view c) { width += character_width(c); });
    return width * font_px;
}

std::string shorten(std::string_view text, double width_px, double font_px) {
    if (text_width(text, font_px) <= width_px) return std::string(text);
    std::string result;
    double width = text_width(kEllipsis, font_px);
    bool full = false;
    for_each_character(text, [&](std::string_view character) {
        width += text_width(character, font_px);
        full |= width > width_px;
        if (!full) result += character;
    });
    return result + std::string(kEllipsis);
}

}  // namespace ferry::report
