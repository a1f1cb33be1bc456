// Exact agreement with the `tokenizers` library on strings of every sort, for tokenizers of five
// styles (tests/golden/make_tokenizers.py).
#include "runtime/tokenizer.h"
#include "tests/runtime/golden_lines.h"

namespace ferry {
namespace {

using nlohmann::json;

std::string bytes_of(const json& line) {
    if (line.contains("text")) return line["text"].get<std::string>();
    const std::string hex = line["hex"].get<std::string>();
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes.push_back(char(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

class TokenizerGolden : public testing::TestWithParam<const char*> {
  protected:
    const std::string name_ = std::string("tokenizers/") + GetParam();
    const Tokenizer tokenizer_ = Tokenizer::load(golden_path(name_ + ".json"));
    const std::vector<json> strings_ = read_golden_lines("tokenizers/strings.jsonl");
    const std::vector<json> golden_ = read_golden_lines(name_ + ".golden.jsonl");
};

TEST_P(TokenizerGolden, EncodesLikeTheLibrary) {
    ASSERT_GE(strings_.size(), 2000u);
    ASSERT_EQ(strings_.size(), golden_.size());
    int num_wrong = 0;
    for (size_t i = 0; i < strings_.size() && num_wrong < 5; ++i) {
        const auto expected = golden_[i]["ids"].get<std::vector<int32_t>>();
        const std::vector<int32_t> ids = tokenizer_.encode(bytes_of(strings_[i]));
        EXPECT_EQ(ids, expected) << "string " << i << ": " << strings_[i];
        num_wrong += ids != expected;
    }
}

TEST_P(TokenizerGolden, DecodesLikeTheLibrary) {
    int num_wrong = 0;
    for (size_t i = 0; i < strings_.size() && num_wrong < 5; ++i) {
        const json& line = golden_[i];
        const auto ids = line["ids"].get<std::vector<int32_t>>();
        const std::string text = tokenizer_.decode(ids);
        if (line.contains("decoded")) {
            EXPECT_EQ(text, line["decoded"].get<std::string>()) << "string " << i;
        } else {
            // nothing was lost: the text itself, which is valid UTF-8 or was repaired alike
            EXPECT_EQ(tokenizer_.encode(text), ids) << "string " << i << ": " << strings_[i];
            if (strings_[i].contains("text")) {
                EXPECT_EQ(text, bytes_of(strings_[i])) << "string " << i;
            }
        }
        if (line.contains("tail")) {
            const std::span<const int32_t> tail = std::span(ids).subspan(ids.size() / 2);
            EXPECT_EQ(tokenizer_.decode(tail, false), line["tail"].get<std::string>())
                << "string " << i << ": " << strings_[i];
        }
        num_wrong += HasFailure();
    }
}

TEST_P(TokenizerGolden, StreamsWhatItDecodes) {
    StreamDecoder stream(tokenizer_);
    for (size_t i = 0; i < strings_.size() && !HasFailure(); ++i) {
        const auto ids = golden_[i]["ids"].get<std::vector<int32_t>>();
        std::string text;
        for (const int32_t id : ids) text += stream.push(id);
        text += stream.flush();
        EXPECT_EQ(text, tokenizer_.decode(ids)) << "string " << i << ": " << strings_[i];
    }
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGolden,
                         testing::Values("deepseek", "llama3", "qwen", "gpt2", "llama2"),
                         [](const auto& style) { return std::string(style.param); });

}  // namespace
}  // namespace ferry
