// Words and numbers of reports: escaping, formatting, and how wide a text will be.
#pragma once
#include <string>
#include <string_view>

namespace ferry::report {

// For text and for attributes in double quotes: & < > " ' are replaced, and so are control
// characters and broken UTF-8, which no HTML file may hold.
std::string escape_html(std::string_view text);

// For a cell of a Markdown table and for plain Markdown text, on one line.
std::string escape_markdown(std::string_view text);

// At most `digits` significant digits, no trailing zeros, thousands apart by U+202F (a narrow
// no-break space): 0.0123, 4.56, 12 345. Not finite: "–".
std::string format_number(double value, int digits = 4);

// A name of the code for people: "expert_wait" is "expert wait".
std::string words_of(std::string name);

// With a decimal prefix before the unit: 1.5 µs for 1.5e-6 "s"; 12 GB for 12e9 "B". An empty unit
// gets k, M, G. No prefix for units that take none (%).
std::string format_quantity(double value, std::string_view unit, int digits = 3);

// "+3.2 %", "−10 %" (a real minus sign), "±0 %".
std::string format_percent_change(double ratio);

// Width of one line in the page's sans-serif font, in pixels: an upper estimate of common fonts, so
// that layouts which reserve it do not overlap.
double text_width(std::string_view text, double font_px);

// Cut to a width, with an ellipsis.
std::string shorten(std::string_view text, double width_px, double font_px);

}  // namespace ferry::report
