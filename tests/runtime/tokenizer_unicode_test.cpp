#include "runtime/tokenizer/unicode.h"

#include <gtest/gtest.h>

namespace ferry::tok {
namespace {

std::string repair(std::string_view bytes) {
    std::string text;
    EXPECT_EQ(append_utf8_lossy(bytes, true, &text), bytes.size());
    return text;
}

TEST(Utf8, StepsForwardAndBack) {
    const std::string text = "aé你😀";  // 1, 2, 3, 4 bytes
    size_t pos = 0;
    EXPECT_EQ(next_char(text, &pos), U'a');
    EXPECT_EQ(next_char(text, &pos), U'é');
    EXPECT_EQ(next_char(text, &pos), U'你');
    EXPECT_EQ(next_char(text, &pos), U'😀');
    EXPECT_EQ(pos, 10u);
    EXPECT_EQ(char_before(text, 10), U'😀');
    EXPECT_EQ(char_before(text, 6), U'你');
    EXPECT_EQ(char_before(text, 1), U'a');
    std::string copy;
    for (const char32_t c : {U'a', U'é', U'你', U'😀'}) append_char(c, &copy);
    EXPECT_EQ(copy, text);
}

// The examples of the Unicode standard, section 3.9, table 3-8 and after.
TEST(Utf8, ReplacesMaximalSubparts) {
    EXPECT_EQ(repair("a\x80z"), "a\uFFFDz");
    EXPECT_EQ(repair("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
              "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
    EXPECT_EQ(repair("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
    EXPECT_EQ(repair("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
              "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
    EXPECT_EQ(repair("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
    EXPECT_EQ(repair("\xE4\xBD"), "\uFFFD");
    EXPECT_FALSE(is_valid_utf8("\xE4\xBD"));
    EXPECT_TRUE(is_valid_utf8("\xE4\xBD\xA0"));
}

TEST(Utf8, LeavesAnUnfinishedCharacterForLater) {
    std::string text;
    EXPECT_EQ(append_utf8_lossy("a\xF0\x9F\x98", false, &text), 1u);
    EXPECT_EQ(text, "a");
    EXPECT_EQ(append_utf8_lossy("\xF0\x9F\x98(", false, &text), 4u);
    EXPECT_EQ(text, "a\uFFFD(");
}

TEST(Unicode, ClassifiesCharacters) {
    for (const char32_t c : {U' ', U'\t', U'\u0085', U'\u00A0', U'\u3000'})
        EXPECT_TRUE(is_whitespace(c));
    EXPECT_FALSE(is_whitespace(U'\u200B'));
    for (const char32_t c : {U'a', U'_', U'7', U'é', U'你', U'\u0301', U'\u200D', U'Ⓐ'})
        EXPECT_TRUE(is_word(c));
    for (const char32_t c : {U' ', U'-', U'😀', U'½'}) EXPECT_FALSE(is_word(c));
    for (const char32_t c : {U'7', U'½', U'Ⅷ', U'٣'}) EXPECT_TRUE(is_numeric(c));
    for (const char32_t c : {U'$', U'+', U'。', U'—'}) EXPECT_TRUE(is_punctuation(c));
    EXPECT_FALSE(is_punctuation(U'€'));  // a symbol, and not ASCII
}

TEST(Unicode, NormalizesAndLowers) {
    EXPECT_EQ(normalize("e\u0301", NormalForm::nfc), "\u00E9");
    EXPECT_EQ(normalize("\u00E9", NormalForm::nfd), "e\u0301");
    EXPECT_EQ(normalize("\uFB01", NormalForm::nfkc), "fi");
    EXPECT_EQ(normalize("\uFB01", NormalForm::nfc), "\uFB01");
    EXPECT_EQ(normalize(std::string("a\0é", 4), NormalForm::nfc), std::string("a\0é", 4));
    EXPECT_EQ(lowercase("AÉΣ\u0130"), "aéσi\u0307");
}

}  // namespace
}  // namespace ferry::tok
