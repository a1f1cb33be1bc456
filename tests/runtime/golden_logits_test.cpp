// Whole models against what Hugging Face Transformers computes (tests/golden/README.md).
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/hf_model.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

struct GoldenPrompt {
    std::vector<int32_t> prompt, continuation;
    std::vector<int64_t> positions;
    int64_t first_row;
    float max_abs_logit;
};

struct Golden {
    std::vector<GoldenPrompt> prompts;
    std::vector<float> logits;
    int64_t vocab_size;
};

std::string model_folder(const std::string& family) {
    return std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/" + family;
}

Golden read_golden(const std::string& family, const std::string& key = "prompts") {
    Golden golden;
    const nlohmann::json json =
        nlohmann::json::parse(std::ifstream(model_folder(family) + "/golden.json"));
    golden.vocab_size = json.at("vocab_size");
    for (const auto& entry : json.at(key))
        golden.prompts.push_back({entry.at("prompt"), entry.at("continuation"),
                                  entry.at("logits_positions"), entry.at("logits_row"),
                                  entry.at("max_abs_logit")});
    std::ifstream file(model_folder(family) + "/golden_logits.bin", std::ios::binary);
    golden.logits.resize(json.at("logits_rows").get<size_t>() *
                         static_cast<size_t>(golden.vocab_size));
    file.read(reinterpret_cast<char*>(golden.logits.data()),
              static_cast<std::streamsize>(golden.logits.size() * sizeof(float)));
    EXPECT_TRUE(file.good());
    return golden;
}

// Largest difference over all golden positions of a prompt, relative to its largest logit.
double relative_error(OneRankModel& model, const Golden& golden, const GoldenPrompt& prompt,
                      int64_t chunk) {
    std::vector<int32_t> tokens = prompt.prompt;
    tokens.insert(tokens.end(), prompt.continuation.begin(), prompt.continuation.end());
    const auto logits = model.logits(tokens, static_cast<int64_t>(prompt.prompt.size()), chunk);
    double largest = 0;
    for (size_t j = 0; j < prompt.positions.size(); ++j) {
        const float* expected =
            golden.logits.data() + (prompt.first_row + static_cast<int64_t>(j)) * golden.vocab_size;
        for (int64_t i = 0; i < golden.vocab_size; ++i) {
            const float got =
                logits[static_cast<size_t>(prompt.positions[j])][static_cast<size_t>(i)];
            if (!std::isfinite(got)) return INFINITY;
            largest = std::max(largest, std::abs(static_cast<double>(got) - expected[i]));
        }
    }
    return largest / prompt.max_abs_logit;
}

class GoldenLogits : public testing::TestWithParam<std::string> {};

TEST_P(GoldenLogits, AgreeInEveryForm) {
    HfModel source(model_folder(GetParam()));
    OneRankModel model(source);
    const Golden golden = read_golden(GetParam());
    ASSERT_FALSE(golden.prompts.empty());
    for (MlaForm form : {MlaForm::by_row, MlaForm::naive, MlaForm::absorb}) {
        model.set_form(form);
        for (const GoldenPrompt& prompt : golden.prompts)
            EXPECT_LT(relative_error(model, golden, prompt, 512), 2e-4)
                << "form " << static_cast<int>(form) << ", prompt of " << prompt.prompt.size();
    }
}

TEST_P(GoldenLogits, GreedyContinuationsAreIdentical) {
    HfModel source(model_folder(GetParam()));
    OneRankModel model(source);
    for (const GoldenPrompt& prompt : read_golden(GetParam()).prompts)
        EXPECT_EQ(model.greedy(prompt.prompt, static_cast<int64_t>(prompt.continuation.size())),
                  prompt.continuation);
}

TEST_P(GoldenLogits, ChunksThreadsAndMicroBatchesGiveTheSameBits) {
    HfModel source(model_folder(GetParam()));
    OneRankModel one(source), three(source, {}, 3, 3);
    const GoldenPrompt prompt = read_golden(GetParam()).prompts.back();
    std::vector<int32_t> tokens = prompt.prompt;
    tokens.insert(tokens.end(), prompt.continuation.begin(), prompt.continuation.begin() + 8);
    const int64_t prompt_length = static_cast<int64_t>(prompt.prompt.size());
    const auto expected = one.logits(tokens, prompt_length);
    for (int64_t chunk : {1, 7, 64}) EXPECT_EQ(one.logits(tokens, prompt_length, chunk), expected);
    EXPECT_EQ(three.logits(tokens, prompt_length, 13), expected);
}

std::vector<std::string> families() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(model_folder("")))
        names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenLogits, testing::ValuesIn(families()),
                         [](const auto& family) {
                             std::string name = family.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

}  // namespace
}  // namespace ferry
