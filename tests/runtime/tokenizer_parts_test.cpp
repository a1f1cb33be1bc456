// Single components of tokenizer.json against the `tokenizers` library
// (tests/golden/tokenizer_parts.py).
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "tests/runtime/golden_lines.h"

namespace ferry::tok {
namespace {

// The result of a component for the input of one case.
Json run(const std::string& kind, const Json& config, const Json& input) {
    const Where where{"parts.jsonl", kind};
    if (kind == "decoder") {
        auto tokens = input.get<std::vector<std::string>>();
        make_decoder(config, where)(&tokens);
        std::string text;
        for (const std::string& token : tokens) text += token;
        return text;
    }
    std::string text = input.get<std::string>();
    if (kind == "normalizer") {
        make_normalizer(config, where)(&text);
        return text;
    }
    Pieces pieces{text, {{0, text.size()}}, true};
    make_pretokenizer(config, where)(&pieces);
    Json result = Json::array();
    for (size_t i = 0; i < pieces.spans.size(); ++i) result.push_back(pieces.view(i));
    return result;
}

TEST(TokenizerParts, AgreeWithTheLibrary) {
    std::map<std::string, int> num_configs;
    for (const Json& line : read_golden_lines("tokenizers/parts.jsonl")) {
        const std::string kind = line["kind"];
        ++num_configs[kind];
        for (const Json& test_case : line["cases"]) {
            EXPECT_EQ(run(kind, line["config"], test_case[0]), test_case[1])
                << line["config"] << " of " << test_case[0];
        }
    }
    EXPECT_GE(num_configs["normalizer"], 10);
    EXPECT_GE(num_configs["pre_tokenizer"], 80);
    EXPECT_GE(num_configs["decoder"], 10);
}

}  // namespace
}  // namespace ferry::tok
