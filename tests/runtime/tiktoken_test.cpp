// Kimi's and Moonlight's tiktoken.model, on a small file whose ids are worked out by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "runtime/tokenizer.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using testing::TempDir;
using testing::write_file;
using Ids = std::vector<int32_t>;

std::string base64(std::string_view bytes) {
    constexpr std::string_view kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t bits = 0;
        for (size_t k = 0; k < 3; ++k)
            bits = bits << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0u);
        for (size_t k = 0; k < 4; ++k)
            text += i + k > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
    }
    return text;
}

// Ids 0 .. 255 are the bytes themselves, these follow.
enum : int32_t {
    lo = 256,
    he,
    el,
    hell,
    abc,
    aa,
    aaa,
    e_acute,
    n34,
    han_a,
    kana_a,
    it_t,
    I_T,
    oW,
    w,
    exclamation
};
constexpr std::array<std::string_view, 16> kTokens{"lo",
                                                   "he",
                                                   "el",
                                                   "hell",
                                                   "abc",
                                                   "aa",
                                                   "aaa",
                                                   "\xc3\xa9",
                                                   "34",
                                                   "\xad"
                                                   "a",
                                                   "\x82"
                                                   "a",
                                                   "t'",
                                                   "T'",
                                                   "oW",
                                                   " w",
                                                   "!\n"};
constexpr int32_t kSpecial = 256 + int32_t(kTokens.size());

std::string small_file() {
    std::string text;
    for (int byte = 0; byte < 256; ++byte)
        text += base64(std::string(1, char(byte))) + " " + std::to_string(byte) + "\n";
    for (size_t i = 0; i < kTokens.size(); ++i)
        text += base64(kTokens[i]) + " " + std::to_string(256 + i) + "\n";
    return text;
}

std::string config(const std::string& more = "", const std::string& program = "kimi") {
    return R"({"auto_map": {"AutoTokenizer": ["tokenization_)" + program +
           R"(.TikTokenTokenizer", null]}, "added_tokens_decoder": {)" + more + "\"" +
           std::to_string(kSpecial) + R"(": {"content": "[BOS]", "special": true}, ")" +
           std::to_string(kSpecial + 2) + R"(": {"content": "<|call|>", "special": false}}})";
}

Tokenizer make(const std::string& ranks = small_file(),
               const std::string& tokenizer_config = config()) {
    return Tokenizer::from_tiktoken(ranks, tokenizer_config, "tiktoken.model");
}

TEST(Tiktoken, MergesByTheRankOfWhatComesOfIt) {
    const Tokenizer tokenizer = make();
    const auto encode = [&](std::string_view text) { return tokenizer.encode(text); };
    EXPECT_THAT(encode("hello"),
                ElementsAre(he, 'l', lo));           // lo, he; "hel" and "llo" are no tokens
    EXPECT_THAT(encode("hell"), ElementsAre(hell));  // whole: he + "ll" would not make it
    EXPECT_THAT(encode("abc"), ElementsAre(abc));
    EXPECT_THAT(encode("abcd"), ElementsAre('a', 'b', 'c', 'd'));  // no way leads to abc
    EXPECT_THAT(encode("aaa"), ElementsAre(aaa));
    EXPECT_THAT(encode("aaaaa"), ElementsAre(aa, aaa));  // aa aa a: then the right one
    EXPECT_THAT(encode("aaaaaaa"), ElementsAre(aa, aa, aaa));
    EXPECT_THAT(encode("\xc3\xa9\xc3\xaa"), ElementsAre(e_acute, 0xc3, 0xaa));
    EXPECT_THAT(encode(""), ElementsAre());
}

// Each text has a token across two pieces, which is not made, or within one, which is.
TEST(Tiktoken, SplitsAsKimiDoes) {
    const Tokenizer tokenizer = make();
    const auto encode = [&](std::string_view text) { return tokenizer.encode(text); };
    EXPECT_THAT(encode("1234"), ElementsAre('1', '2', '3', '4'));  // digits in threes
    EXPECT_THAT(encode("134"), ElementsAre('1', n34));
    EXPECT_THAT(encode("中a"), ElementsAre(0xe4, 0xb8, 0xad, 'a'));  // Han stands alone
    EXPECT_THAT(encode("あa"), ElementsAre(0xe3, 0x81, kana_a));     // other letters do not
    EXPECT_THAT(encode("it's"), ElementsAre('i', it_t, 's'));
    EXPECT_THAT(encode("IT'S"), ElementsAre('I', I_T, 'S'));
    EXPECT_THAT(encode("it'x"), ElementsAre('i', 't', '\'', 'x'));
    EXPECT_THAT(encode("oWo"), ElementsAre('o', 'W', 'o'));  // a capital begins a piece
    EXPECT_THAT(encode("OoW"), ElementsAre('O', 'o', 'W'));
    EXPECT_THAT(encode("a wa"), ElementsAre('a', w, 'a'));
    EXPECT_THAT(encode("a  wa"), ElementsAre('a', ' ', w, 'a'));
    EXPECT_THAT(encode("a!\n\n"), ElementsAre('a', exclamation, '\n'));
}

TEST(Tiktoken, KnowsSpecialTokensAndWhatIsReservedForThem) {
    const Tokenizer tokenizer = make();
    const std::string reserved = "<|reserved_token_" + std::to_string(kSpecial + 1) + "|>";
    EXPECT_EQ(tokenizer.vocab_size(), kSpecial + 256);
    const Ids ids{kSpecial, 'a', kSpecial + 2, kSpecial + 1};
    EXPECT_EQ(tokenizer.encode("[BOS]a<|call|>" + reserved), ids);
    EXPECT_EQ(tokenizer.decode(ids, false), "[BOS]a<|call|>" + reserved);
    EXPECT_EQ(tokenizer.decode(ids), "a<|call|>");
    EXPECT_EQ(tokenizer.token_id("[BOS]"), kSpecial);
}

TEST(Tiktoken, MoonlightDiffersInWhatIsReserved) {
    const Tokenizer kimi = make(), moonlight = make(small_file(), config("", "moonshot"));
    EXPECT_EQ(moonlight.vocab_size(), kSpecial + 258);
    const std::string text = "it's 1234 中a OoW a!\n\n [BOS]";
    EXPECT_EQ(moonlight.encode(text), kimi.encode(text));
    const std::string last = "<|reserved_token_" + std::to_string(kSpecial + 257) + "|>";
    EXPECT_THAT(moonlight.encode(last), ElementsAre(kSpecial + 257));
    EXPECT_GT(kimi.encode(last).size(), 1U);
}

TEST(Tiktoken, BytesComeBack) {
    const Tokenizer tokenizer = make();
    const std::string text = "hello, 世界! it's\r\n\t 1234 \xf0\x9f\x98\x80 \xe2\x80\x8d aaaa";
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids), text);
    StreamDecoder stream(tokenizer);
    std::string pieces;
    for (const int32_t id : ids) pieces += stream.push(id);
    EXPECT_EQ(pieces + stream.flush(), text);
}

TEST(Tiktoken, RefusesDamagedFiles) {
    const auto refuses = [](const std::string& ranks, const std::string& what) {
        EXPECT_ERROR(make(ranks), ErrorKind::checkpoint, "tiktoken.model: " + what);
    };
    refuses("", "byte 0 is no token");
    refuses("AA== 0\nAQ==\n", "line 2: is not a token in base64 and its rank");
    refuses("AA== 0\nA!== 1\n", "line 2: is not a token in base64 and its rank");
    refuses("AA== 0\nAQ= 1\n", "line 2: is not a token in base64 and its rank");
    refuses("AA== 0\nAQ== 1x\n", "line 2: is not a token in base64 and its rank");
    refuses("AA== 0\nAQ== 2\n", "line 2: has rank 2, expected 1");
    refuses(small_file() + "YQ== 272\n", "vocab: \"a\" has the ids 97 and 272");
    EXPECT_ERROR(make(small_file(), config(R"("5": {"content": "x"}, )")), ErrorKind::checkpoint,
                 "added_tokens_decoder.5: is no id from 272 to 527");
    for (const char* other :
         {"", "{}", R"({"auto_map": {"AutoTokenizer": ["tokenization_other.TikTokenTokenizer"]}})"})
        EXPECT_ERROR(make(small_file(), other), ErrorKind::checkpoint,
                     "does not name tokenization_kimi");
}

TEST(Tiktoken, IsFoundWhereThereIsNoTokenizerJson) {
    const TempDir dir;
    const std::filesystem::path folder(dir / "");
    EXPECT_TRUE(Tokenizer::find(folder).empty());
    write_file(dir / "tiktoken.model", small_file());
    EXPECT_TRUE(Tokenizer::find(folder).empty());
    write_file(dir / "tokenizer_config.json", "{}");
    EXPECT_TRUE(Tokenizer::find(folder).empty());  // of a model that splits otherwise
    write_file(dir / "tokenizer_config.json", config());
    ASSERT_EQ(Tokenizer::find(folder).filename(), "tiktoken.model");
    EXPECT_THAT(Tokenizer::load(Tokenizer::find(folder)).encode("hello"), ElementsAre(he, 'l', lo));
    write_file(dir / "tokenizer.json", "{}");
    EXPECT_EQ(Tokenizer::find(folder).filename(), "tokenizer.json");
}

}  // namespace
}  // namespace ferry
