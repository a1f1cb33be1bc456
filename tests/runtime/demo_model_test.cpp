// The demo model that the repository ships, from text to text, against Transformers.
#include <gtest/gtest.h>

#include "runtime/chat_template.h"
#include "runtime/hf_model.h"
#include "runtime/tokenizer.h"
#include "tests/support/golden_models.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

const std::string kDemo = std::string(FERRY_SOURCE_DIR) + "/configs/demo";

class DemoModel : public ::testing::Test {
  protected:
    const std::string folder_ = testing::golden_folder("demo");
    const nlohmann::json golden_ = testing::read_golden_json(folder_);
    const nlohmann::json prompts_ = golden_.at("prompts");
};

TEST_F(DemoModel, TokenizesAsTransformersDoes) {
    const Tokenizer tokenizer = Tokenizer::load(kDemo + "/tokenizer.json");
    const ChatTemplate chat = ChatTemplate::load(kDemo).value();
    int num_chats = 0;
    for (const auto& entry : prompts_) {
        const std::string text = entry.at("text");
        const bool is_chat = entry.at("kind") == "chat";
        num_chats += is_chat ? 1 : 0;
        EXPECT_EQ(is_chat ? chat.render({{"user", entry.at("given")}})
                          : entry.at("given").get<std::string>(),
                  text);
        EXPECT_EQ(tokenizer.encode(text, !is_chat), entry.at("prompt").get<std::vector<int32_t>>());
        EXPECT_EQ(tokenizer.decode(entry.at("continuation").get<std::vector<int32_t>>(), false),
                  entry.at("continuation_text"));
    }
    EXPECT_GE(num_chats, 2);
}

TEST_F(DemoModel, LogitsAgreeAndGreedyContinuationsAreIdentical) {
    ASSERT_GE(prompts_.size(), 6u);
    const testing::GoldenRows rows(folder_ + "/golden_logits.bin", golden_.at("vocab_size"));
    HfModel source(kDemo);
    OneRankModel model(source, {}, 2);
    for (const auto& entry : prompts_) {
        SCOPED_TRACE(entry.at("given"));
        const std::vector<int32_t> prompt = entry.at("prompt");
        const std::vector<int32_t> continuation = entry.at("continuation");
        const auto logits = model.logits(prompt, static_cast<int64_t>(prompt.size()));
        EXPECT_LT(testing::largest_difference(logits.back(), rows.row(entry.at("logits_row"))),
                  2e-4 * entry.at("max_abs_logit").get<double>());
        EXPECT_GE(continuation.size(), 64u);
        EXPECT_EQ(model.greedy(prompt, static_cast<int64_t>(continuation.size())), continuation);
    }
}

}  // namespace
}  // namespace ferry
