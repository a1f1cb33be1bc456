#include "launch/chat.h"

#include "base/error.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry {
namespace {

constexpr std::string_view kHelp =
    "/clear forgets the conversation, /exit ends it, Ctrl-C stops an answer\n";

// The conversation so far, as messages or as one text.
class Conversation {
  public:
    explicit Conversation(const ChatModel& model) : model_(model) {}

    void clear() {
        messages_.clear();
        text_.clear();
    }

    // Throws Error(input); the conversation is then as before.
    void ask(const std::string& line, const std::function<void(std::string_view)>& show) {
        if (!model_.render) {
            const std::string prompt = text_ + line;
            text_ = prompt + model_.answer(prompt, false, show) + "\n";
            return;
        }
        messages_.push_back({"user", line});
        try {
            const std::string answer = model_.answer(model_.render(messages_), true, show);
            messages_.push_back({"assistant", answer});
        } catch (const Error&) {
            messages_.pop_back();
            throw;
        }
    }

  private:
    const ChatModel& model_;
    std::vector<ChatMessage> messages_;
    std::string text_;
};

}  // namespace

void chat(const ChatIo& io, const ChatModel& model) {
    Conversation conversation(model);
    if (!model.render) io.write("This model has no chat template: it continues what you write.\n");
    io.write(kHelp);
    std::string line;
    for (;;) {
        io.write("> ");
        bool interrupted = false;
        if (!io.read_line(line, interrupted)) break;
        if (interrupted) {
            io.write("\n");
            io.write(kHelp);
        } else if (line == "/exit") {
            return;
        } else if (line == "/clear") {
            conversation.clear();
        } else if (line.starts_with("/")) {
            io.write(kHelp);
        } else if (!tok::is_valid_utf8(line)) {
            io.write("what you wrote is not UTF-8\n");
        } else if (!line.empty()) {
            try {
                conversation.ask(line, io.write);
            } catch (const Error& error) {
                if (error.kind() != ErrorKind::input) throw;
                io.write(error.what());
            }
            io.write("\n");
        }
    }
    io.write("\n");
}

}  // namespace ferry
