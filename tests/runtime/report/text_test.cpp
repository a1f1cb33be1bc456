#include "runtime/report/text.h"

#include <gtest/gtest.h>

namespace ferry::report {
namespace {

constexpr const char* kThin = "\xE2\x80\xAF";
constexpr const char* kMinus = "\xE2\x88\x92";
constexpr const char* kNoBreak = "\xC2\xA0";

TEST(ReportText, HtmlHoldsNoMarkupOfInputs) {
    EXPECT_EQ(escape_html("<b a=\"x\">'&'</b>"),
              "&lt;b a=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/b&gt;");
    EXPECT_EQ(escape_html("a\nb\tc"), "a b c");
    EXPECT_EQ(escape_html(std::string_view("\0\x1b", 2)), "\xEF\xBF\xBD\xEF\xBF\xBD");
    EXPECT_EQ(escape_html("\xC3\xA9\xFF\xC3"), "\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD");
    EXPECT_EQ(escape_html("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
}

TEST(ReportText, MarkdownCellsStayCells) {
    EXPECT_EQ(escape_markdown("a|b\n*c*"), "a\\|b \\*c\\*");
    EXPECT_EQ(escape_markdown("<script>"), "\\<script\\>");
}

TEST(ReportText, NumbersAreRoundedAndGrouped) {
    EXPECT_EQ(format_number(0), "0");
    EXPECT_EQ(format_number(1234), "1234");
    EXPECT_EQ(format_number(12345.6), std::string("12") + kThin + "346");
    EXPECT_EQ(format_number(0.012345), "0.01235");
    EXPECT_EQ(format_number(9.99999), "10");
    EXPECT_EQ(format_number(2.50), "2.5");
    EXPECT_EQ(format_number(-3.25, 2), std::string(kMinus) + "3.2");
    EXPECT_EQ(format_number(1e300), "1e+300");
    EXPECT_EQ(format_number(0.0 / 0.0), "\xE2\x80\x93");
}

TEST(ReportText, QuantitiesTakeDecimalPrefixes) {
    EXPECT_EQ(format_quantity(1.5e-6, "s"), std::string("1.5") + kNoBreak + "\xC2\xB5s");
    EXPECT_EQ(format_quantity(0.25, "s"), std::string("250") + kNoBreak + "ms");
    EXPECT_EQ(format_quantity(100, "s"), std::string("100") + kNoBreak + "s");
    EXPECT_EQ(format_quantity(12e9, "B"), std::string("12") + kNoBreak + "GB");
    EXPECT_EQ(format_quantity(0.5, "B"), std::string("0.5") + kNoBreak + "B");
    EXPECT_EQ(format_quantity(20000, ""), std::string("20") + kNoBreak + "k");
    EXPECT_EQ(format_quantity(20, ""), "20");
    EXPECT_EQ(format_percent_change(0.0321), std::string("+3.2") + kNoBreak + "%");
    EXPECT_EQ(format_percent_change(-0.5), std::string(kMinus) + "50" + kNoBreak + "%");
    EXPECT_EQ(format_percent_change(0.0001), std::string("\xC2\xB1") + "0" + kNoBreak + "%");
}

TEST(ReportText, LongTextIsCutToItsWidth) {
    const std::string text = "a name that is much too long for its place";
    const std::string cut = shorten(text, 100, 12);
    EXPECT_LE(text_width(cut, 12), 100);
    EXPECT_TRUE(cut.ends_with("\xE2\x80\xA6"));
    EXPECT_EQ(shorten("short", 100, 12), "short");
}

}  // namespace
}  // namespace ferry::report
