#include "runtime/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"

namespace ferry {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// a 0, b 1, c 2, space ("Ġ") 3, ab 4, bc 5, abc 6; merges in rank order: b+c, a+b, a+bc.
json small_file() {
    return json::parse(R"({
        "model": {"type": "BPE",
                  "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "bc": 5, "abc": 6},
                  "merges": ["b c", ["a", "b"], "a bc"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": 7, "content": "<s>", "special": true},
                         {"id": 8, "content": "<x>", "special": false}],
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [7]}}}})");
}

Tokenizer make(const json& file) {
    return Tokenizer::from_json(file.dump(), "t.json");
}

std::string error_of(const json& file) {
    try {
        make(file);
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::checkpoint);
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
        return error.what();
    }
    return "no error";
}

TEST(Tokenizer, MergesLowestRankFirst) {
    const Tokenizer tokenizer = make(small_file());
    EXPECT_THAT(tokenizer.encode("abc", false), ElementsAre(6));  // bc first, then a+bc
    EXPECT_THAT(tokenizer.encode("ab", false), ElementsAre(4));
    EXPECT_THAT(tokenizer.encode("bcabb", false), ElementsAre(5, 4, 1));
    EXPECT_THAT(tokenizer.encode("abab ab", false), ElementsAre(4, 4, 3, 4));
    EXPECT_THAT(tokenizer.encode("", false), IsEmpty());
    EXPECT_THAT(tokenizer.encode("azc", false), ElementsAre(0, 2));  // z: unknown, and no unk_token
}

TEST(Tokenizer, WholeWordsNeedIgnoreMerges) {
    json file = small_file();
    file["model"]["vocab"]["cab"] = 9;  // no merge reaches it
    EXPECT_THAT(make(file).encode("cab", false), ElementsAre(2, 4));
    file["model"]["ignore_merges"] = true;
    EXPECT_THAT(make(file).encode("cab", false), ElementsAre(9));
}

TEST(Tokenizer, CutsOutAddedTokens) {
    const Tokenizer tokenizer = make(small_file());
    EXPECT_THAT(tokenizer.encode("a<x>b"), ElementsAre(7, 0, 8, 1));
    EXPECT_THAT(tokenizer.encode("a<s>b", false), ElementsAre(0, 7, 1));
    EXPECT_THAT(tokenizer.encode(""), ElementsAre(7));
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{7, 0, 8, 1}), "a<x>b");
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{7, 0, 8, 1}, false), "<s>a<x>b");
}

TEST(Tokenizer, LooksUpTokens) {
    const Tokenizer tokenizer = make(small_file());
    EXPECT_EQ(tokenizer.vocab_size(), 9);
    EXPECT_EQ(tokenizer.token_id("abc"), 6);
    EXPECT_EQ(tokenizer.token_id("<s>"), 7);
    EXPECT_EQ(tokenizer.token_id("cab"), std::nullopt);
    EXPECT_TRUE(tokenizer.is_special(7));
    EXPECT_FALSE(tokenizer.is_special(8));
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{0, 99, -5, 1}), "ab");
}

// "<unk>" 0, a 1, "<0x41>" 2 ("A" by its byte).
TEST(Tokenizer, FallsBackToBytesThenToTheUnknownToken) {
    json file = {{"model",
                  {{"type", "BPE"},
                   {"vocab", {{"<unk>", 0}, {"a", 1}, {"<0x41>", 2}}},
                   {"merges", json::array()},
                   {"unk_token", "<unk>"}}}};
    EXPECT_THAT(make(file).encode("aAzz"), ElementsAre(1, 0, 0, 0));
    file["model"]["byte_fallback"] = true;
    EXPECT_THAT(make(file).encode("aAzz"), ElementsAre(1, 2, 0, 0));
    file["model"]["fuse_unk"] = true;
    EXPECT_THAT(make(file).encode("aAzz"), ElementsAre(1, 2, 0));
}

TEST(Tokenizer, StreamsWholeCharacters) {
    json file = small_file();
    // "é" is C3 A9: the characters Ã and ©
    file["model"]["vocab"]["Ã"] = 9;
    file["model"]["vocab"]["©"] = 10;
    StreamDecoder stream(make(file));
    EXPECT_EQ(stream.push(7), "");  // special
    EXPECT_EQ(stream.push(0), "a");
    EXPECT_EQ(stream.push(9), "");
    EXPECT_EQ(stream.push(10), "é");
    EXPECT_EQ(stream.push(9), "");
    EXPECT_EQ(stream.push(3), "\uFFFD ");  // C3 is not finished any more
    EXPECT_EQ(stream.push(9), "");
    EXPECT_EQ(stream.flush(), "\uFFFD");
    EXPECT_EQ(stream.flush(), "");
    EXPECT_EQ(stream.push(1), "b");
}

TEST(Tokenizer, ThreadsShareOne) {
    const Tokenizer tokenizer = make(small_file());
    std::string text;
    for (int i = 0; i < 2000; ++i) text += "abc ab<x> cab bca ";
    const std::vector<int32_t> expected = tokenizer.encode(text);
    std::vector<std::vector<int32_t>> results(4);
    std::vector<std::thread> threads;
    for (auto& result : results) {
        threads.emplace_back([&] { result = tokenizer.encode(text); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, LongWordsAreNotQuadratic) {
    const std::string text(1 << 20, 'b');
    EXPECT_EQ(make(small_file()).encode(text, false).size(), text.size());
    std::string pairs;
    for (int i = 0; i < 1 << 19; ++i) pairs += "ab";
    EXPECT_EQ(make(small_file()).encode(pairs, false).size(), size_t{1} << 19);
}

TEST(TokenizerErrors, NameFileAndComponent) {
    json file = small_file();
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers", {{{"type", "WhitespaceSplit"}}, {{"type", "BertPreTokenizer"}}}}};
    EXPECT_THAT(
        error_of(file),
        HasSubstr("t.json: pre_tokenizer.pretokenizers[1]: pre-tokenizer \"BertPreTokenizer\""));
    file = small_file();
    file["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
    EXPECT_THAT(
        error_of(file),
        HasSubstr("t.json: pre_tokenizer: bad regex: end pattern with unmatched parenthesis"));
    file["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}};
    EXPECT_THAT(error_of(file), HasSubstr("behavior \"Odd\""));
    file = small_file();
    file["normalizer"] = {{"type", "Precompiled"}};
    EXPECT_THAT(error_of(file), HasSubstr("t.json: normalizer: normalizer \"Precompiled\""));
    file = small_file();
    file["decoder"] = {{"type", "WordPiece"}};
    EXPECT_THAT(error_of(file), HasSubstr("t.json: decoder: decoder \"WordPiece\""));
    file = small_file();
    file["post_processor"]["special_tokens"]["<s>"]["ids"] = {99};
    EXPECT_THAT(error_of(file), HasSubstr("t.json: post_processor: "));
}

TEST(TokenizerErrors, RefuseOtherModels) {
    json file = small_file();
    file["model"]["type"] = "Unigram";
    EXPECT_THAT(error_of(file), HasSubstr("t.json: model: model \"Unigram\""));
    file = small_file();
    file["model"]["end_of_word_suffix"] = "</w>";
    EXPECT_THAT(error_of(file), HasSubstr("end_of_word_suffix is not supported"));
    file = small_file();
    file["model"]["dropout"] = 0.1;
    EXPECT_THAT(error_of(file), HasSubstr("dropout is not supported"));
    file.erase("model");
    EXPECT_THAT(error_of(file), HasSubstr("t.json: 'model' is missing"));
}

TEST(TokenizerErrors, RefuseDamagedVocabularies) {
    json file = small_file();
    file["model"]["merges"].push_back("a c");
    EXPECT_THAT(error_of(file), HasSubstr("t.json: model.merges[3]: \"ac\" is not in the vocab"));
    file["model"]["merges"][3] = "a";
    EXPECT_THAT(error_of(file), HasSubstr("t.json: model.merges[3]: is neither"));
    file = small_file();
    file["model"]["vocab"]["c"] = 1;
    EXPECT_THAT(error_of(file), HasSubstr("have the same id 1"));
    file["model"]["vocab"]["c"] = 4000000000u;
    EXPECT_THAT(error_of(file), HasSubstr("id of \"c\""));
    file["model"]["vocab"]["c"] = -1;
    EXPECT_THAT(error_of(file), HasSubstr("id of \"c\""));
    file = small_file();
    file["added_tokens"][0]["id"] = 2000000000;
    EXPECT_THAT(error_of(file), HasSubstr("\"<s>\" has id 2000000000"));
    file["added_tokens"][0] = {{"id", 7}, {"content", "ab"}};
    EXPECT_THAT(error_of(file), HasSubstr("\"ab\" has id 7, but 4 in the vocab"));
}

TEST(TokenizerErrors, RefuseWhatIsNoJson) {
    EXPECT_THROW(Tokenizer::from_json("{\"model\": ", "t.json"), Error);
    EXPECT_THROW(Tokenizer::from_json("", "t.json"), Error);
    EXPECT_THROW(Tokenizer::from_json("[]", "t.json"), Error);
    EXPECT_THROW(Tokenizer::load("/nonexistent/tokenizer.json"), Error);
    json deep = {{"type", "NFC"}};
    for (int i = 0; i < 100; ++i) {
        deep = {{"type", "Sequence"}, {"normalizers", json::array({deep})}};
    }
    json file = small_file();
    file["normalizer"] = deep;
    EXPECT_THAT(error_of(file), HasSubstr("nested too deeply"));
}

TEST(TokenizerErrors, RunawayRegexGivesUp) {
    json file = small_file();
    file["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", "(?:a|aa)+$"}}}, {"behavior", "Isolated"}};
    try {
        make(file).encode(std::string(60, 'a') + "b");
        FAIL() << "found nothing in little time";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::input);
        EXPECT_THAT(error.what(), HasSubstr("t.json: pre_tokenizer: regex search"));
    }
}

}  // namespace
}  // namespace ferry
