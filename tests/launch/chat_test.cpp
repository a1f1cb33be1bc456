#include "launch/chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "base/error.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A person who writes `lines` and a model that answers "<prompt>" in two pieces.
class ChatTest : public ::testing::Test {
  protected:
    void run(std::deque<std::string> lines, bool with_template) {
        const ChatIo io{.read_line =
                            [&](std::string& line, bool& interrupted) {
                                if (lines.empty()) return false;
                                line = lines.front();
                                lines.pop_front();
                                interrupted = line == "^C";
                                return true;
                            },
                        .write = [&](std::string_view text) { screen_ += text; }};
        ChatModel model;
        if (with_template)
            model.render = [](const std::vector<ChatMessage>& messages) {
                std::string text;
                for (const ChatMessage& message : messages)
                    text += message.role.substr(0, 1) + ":" + message.content + ";";
                return text;
            };
        model.answer = [&](const std::string& prompt, bool raw,
                           const std::function<void(std::string_view)>& show) {
            EXPECT_EQ(raw, with_template);
            if (prompt.find("too long") != std::string::npos)
                throw Error(ErrorKind::input, "the prompt is too long");
            prompts_.push_back(prompt);
            show("an");
            show("swer");
            return std::string("answer");
        };
        chat(io, model);
        num_left_ = lines.size();
    }

    std::string screen_;
    std::vector<std::string> prompts_;
    size_t num_left_ = 0;
};

TEST_F(ChatTest, MessagesCarryTheConversation) {
    run({"hello", "more"}, true);
    EXPECT_THAT(prompts_, ElementsAre("u:hello;", "u:hello;a:answer;u:more;"));
    EXPECT_THAT(screen_, HasSubstr("> answer\n> answer\n> \n"));
}

TEST_F(ChatTest, WithoutATemplateItIsOneText) {
    run({"Once", "Then"}, false);
    EXPECT_THAT(prompts_, ElementsAre("Once", "Onceanswer\nThen"));
    EXPECT_THAT(screen_, HasSubstr("no chat template"));
}

TEST_F(ChatTest, ClearForgetsAndExitEnds) {
    run({"a", "/clear", "b", "/exit", "c"}, true);
    EXPECT_THAT(prompts_, ElementsAre("u:a;", "u:b;"));
    EXPECT_EQ(num_left_, 1u);
}

TEST_F(ChatTest, EmptyLinesUnknownCommandsAndInterruptsAskNothing) {
    run({"", "/clera", "^C", "x"}, false);
    EXPECT_THAT(prompts_, ElementsAre("x"));
}

TEST_F(ChatTest, APromptThatCannotRunIsForgotten) {
    run({"too long", "short"}, true);
    EXPECT_THAT(prompts_, ElementsAre("u:short;"));
    EXPECT_THAT(screen_, HasSubstr("the prompt is too long\n"));
}

TEST_F(ChatTest, WhatIsNotUtf8IsRefusedAndTheConversationGoesOn) {
    run({"hello", "caf\xe9", "caf\xc3\xa9"}, true);
    EXPECT_THAT(prompts_, ElementsAre("u:hello;", "u:hello;a:answer;u:caf\xc3\xa9;"));
    EXPECT_THAT(screen_, HasSubstr("> what you wrote is not UTF-8\n> "));
}

}  // namespace
}  // namespace ferry
