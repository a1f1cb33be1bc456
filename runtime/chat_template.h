// Turns chat messages into a prompt, with the Jinja template that a checkpoint carries or with one
// from the configuration.
//
// The subset of Jinja that is supported (as Transformers sets it up: trim_blocks, lstrip_blocks):
//   statements   for (several names, `if`, else, break, continue; loop.index, index0, first, last,
//                length, revindex, revindex0, previtem, nextitem), if/elif/else, set (also of a
//                namespace attribute, also as a block), macro (outside of other blocks but if;
//                called by name), generation (ignored), comments
//   expressions  literals, lists, tuples, mappings, x.y, x[y], slices, + - * / // % ~, comparisons,
//                in, not in, and, or, not, a if b else c, calls of range, namespace, dict,
//                raise_exception
//   filters      trim upper lower capitalize string safe int length count list items first last
//                default d tojson replace map(attribute=, default=) select reject selectattr
//                rejectattr join
//   tests        defined undefined none string mapping iterable sequence number integer float
//                boolean true false odd even divisibleby in equalto eq ne
//   methods      of strings: split replace strip lstrip rstrip upper lower capitalize startswith
//                endswith join; of mappings: items keys values get
//   white space  {%- -%} {{- -}} {#- -#} {%+ +%}
// Not supported, refused by name and line: call, filter, include, import, extends, block, with, do,
// raw, chains of comparisons, **, printing lists and mappings without tojson, upper case beyond
// ASCII. strftime_now is left undefined, so that a prompt does not depend on the day.
// These suffice for the templates of DeepSeek V2, V3, V3.1 and R1, Kimi K2 and K2 Thinking,
// Moonlight, GLM-4.7, Qwen2 and 2.5, Llama 3, ChatML.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

struct ChatMessage {
    std::string role;  // "system", "user", "assistant", …
    std::string content;
};

// Immutable and cheap to copy; any number of threads may use one template.
class ChatTemplate {
  public:
    struct SpecialTokens {
        std::string bos_token;
        std::string eos_token;
        // Whether they stand around a text; empty where tokenizer.json decides.
        std::optional<bool> adds_bos = {}, adds_eos = {};
    };

    // `name` stands for the file in messages. Throws Error(checkpoint) that names line and
    // construct for what is not supported.
    ChatTemplate(std::string_view source, SpecialTokens tokens, const std::string& name);

    // The template of a Hugging Face folder: chat_template.jinja, or `chat_template` of
    // tokenizer_config.json (of several the one named "default"); empty when there is none. Throws
    // Error(checkpoint).
    static std::optional<ChatTemplate> load(const std::filesystem::path& folder);
    // The special tokens that tokenizer_config.json of a folder names, empty where it names none.
    // Of Llama's classes, which DeepSeek's files name, Transformers has add_bos_token and
    // add_eos_token outweigh the post-processor of tokenizer.json.
    static SpecialTokens load_special_tokens(const std::filesystem::path& folder);

    // The prompt; encode it with add_special_tokens = false. `add_generation_prompt` ends it where
    // the assistant's answer starts. Invalid UTF-8 is replaced as in Tokenizer::encode. Throws
    // Error(input) for messages that the template refuses.
    std::string render(const std::vector<ChatMessage>& messages,
                       bool add_generation_prompt = true) const;
    // The same for a JSON list of messages with any fields (such as tool_calls), and further
    // variables of the template from a JSON object (such as {"tools": […]}). A content that is a
    // list of {"type": "text", "text": …} is given to templates that go through it as it is, to
    // others as one text with a line for each.
    std::string render_json(std::string_view messages, bool add_generation_prompt = true,
                            std::string_view variables = "{}") const;

  private:
    struct Impl;
    std::shared_ptr<const Impl> impl_;
};

}  // namespace ferry
