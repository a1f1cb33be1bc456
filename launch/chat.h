// `ferry generate --interactive`: a person writes, the model answers as it goes.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "runtime/chat_template.h"

namespace ferry {

struct ChatIo {
    // A line that the person wrote; false at the end of the input. `interrupted`: a signal came
    // instead of a line.
    std::function<bool(std::string& line, bool& interrupted)> read_line;
    std::function<void(std::string_view text)> write;
};

// What the loop needs of the model.
struct ChatModel {
    // Messages to the text of a prompt; empty: the model has no template, and the conversation is
    // one text that the model continues.
    std::function<std::string(const std::vector<ChatMessage>& messages)> render;
    // Continues the prompt, calling `show` with each piece of text; returns the whole. `raw`: the
    // prompt is of a template, which writes special tokens itself. Throws Error(input) for a
    // prompt that cannot run.
    std::function<std::string(const std::string& prompt, bool raw,
                              const std::function<void(std::string_view)>& show)>
        answer;
};

// Lines are messages; "/clear" forgets the conversation, "/exit" or the end of the input ends it,
// "/help" tells so. A line that is not UTF-8 is refused. A signal stops an answer only.
void chat(const ChatIo& io, const ChatModel& model);

}  // namespace ferry
