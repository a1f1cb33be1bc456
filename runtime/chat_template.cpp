#include "runtime/chat_template.h"

#include <fmt/core.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "runtime/jinja/content_lists.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/syntax.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry {

using OrderedJson = nlohmann::ordered_json;

struct ChatTemplate::Impl {
    jinja::Source source;
    jinja::Nodes nodes;
    SpecialTokens tokens;
    bool takes_content_lists;

    std::string render(jinja::Value messages, bool add_generation_prompt,
                       jinja::Dict variables) const {
        variables.set("messages", std::move(messages));
        variables.set("add_generation_prompt", add_generation_prompt);
        // Transformers defines only the tokens that a tokenizer has
        if (!tokens.bos_token.empty()) variables.set("bos_token", tokens.bos_token);
        if (!tokens.eos_token.empty()) variables.set("eos_token", tokens.eos_token);
        return jinja::render(nodes, variables, source);
    }
};

namespace {

std::optional<std::string> read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return std::nullopt;
    std::ostringstream text;
    text << file.rdbuf();
    return std::move(text).str();
}

OrderedJson read_config(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / "tokenizer_config.json";
    const std::optional<std::string> text = read_file(path);
    if (!text) return OrderedJson::object();
    const OrderedJson config = OrderedJson::parse(*text, nullptr, false);
    if (!config.is_object()) {
        throw Error(ErrorKind::checkpoint, "{}: is not a JSON object", path.string());
    }
    return config;
}

// A token is a string, or an object with its content.
std::string read_token(const OrderedJson& config, const char* key) {
    const OrderedJson token = config.value(key, OrderedJson());
    if (token.is_string()) return token.get<std::string>();
    if (token.is_object() && token.contains("content") && token["content"].is_string()) {
        return token["content"].get<std::string>();
    }
    return "";
}

bool is_llama(const OrderedJson& config) {
    const OrderedJson name = config.value("tokenizer_class", OrderedJson());
    return name == "LlamaTokenizerFast" || name == "LlamaTokenizer";
}

bool read_flag(const OrderedJson& config, const char* key, bool fallback) {
    const OrderedJson flag = config.value(key, OrderedJson());
    return flag.is_boolean() ? flag.get<bool>() : fallback;
}

// A template is a string, or a list of {"name", "template"}.
std::optional<std::string> read_template(const OrderedJson& config) {
    const OrderedJson source = config.value("chat_template", OrderedJson());
    if (source.is_string()) return source.get<std::string>();
    if (!source.is_array()) return std::nullopt;
    for (const OrderedJson& choice : source) {
        if (choice.is_object() && choice.value("name", OrderedJson()) == "default" &&
            choice.value("template", OrderedJson()).is_string()) {
            return choice["template"].get<std::string>();
        }
    }
    return std::nullopt;
}

std::string repair(std::string_view bytes) {
    std::string text;
    tok::append_utf8_lossy(bytes, true, &text);
    return text;
}

// A content that is a list of texts becomes one text, a line for each; others stay as they are.
void join_texts(OrderedJson& content) {
    std::string text;
    if (!content.is_array()) return;
    for (const OrderedJson& part : content) {
        if (!part.is_object() || !part.value("text", OrderedJson()).is_string()) return;
        if (&part != &content.front()) text += '\n';
        text += part["text"].get_ref<const std::string&>();
    }
    content = std::move(text);
}

// Input that comes from a user: a line of a request file.
OrderedJson parse_input(std::string_view text, bool is_wanted(const OrderedJson&),
                        std::string_view what) {
    OrderedJson json = OrderedJson::parse(text, nullptr, false);
    if (json.is_discarded() || !is_wanted(json)) {
        throw Error(ErrorKind::input, "{}", what);
    }
    return json;
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, SpecialTokens tokens, const std::string& name) {
    jinja::Source place{name};
    if (!tok::is_valid_utf8(source)) {
        throw Error(ErrorKind::checkpoint, "{}: the chat template is not UTF-8", name);
    }
    jinja::Nodes nodes = jinja::parse(source, place);
    const bool takes_content_lists = jinja::takes_content_lists(nodes);
    impl_ = std::make_shared<const Impl>(
        Impl{std::move(place), std::move(nodes), std::move(tokens), takes_content_lists});
}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder) {
    const std::filesystem::path file = folder / "chat_template.jinja";
    if (const std::optional<std::string> source = read_file(file)) {
        return ChatTemplate(*source, load_special_tokens(folder), file.string());
    }
    const std::optional<std::string> source = read_template(read_config(folder));
    if (!source) return std::nullopt;
    const std::string name = (folder / "tokenizer_config.json").string() + ": chat_template";
    return ChatTemplate(*source, load_special_tokens(folder), name);
}

ChatTemplate::SpecialTokens ChatTemplate::load_special_tokens(const std::filesystem::path& folder) {
    const OrderedJson config = read_config(folder);
    SpecialTokens tokens{read_token(config, "bos_token"), read_token(config, "eos_token")};
    if (is_llama(config)) {
        tokens.adds_bos = read_flag(config, "add_bos_token", true);
        tokens.adds_eos = read_flag(config, "add_eos_token", false);
    }
    return tokens;
}

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                 bool add_generation_prompt) const {
    jinja::List list;
    for (const ChatMessage& message : messages) {
        jinja::Dict dict;
        dict.set("role", repair(message.role));
        dict.set("content", repair(message.content));
        list.push_back(dict);
    }
    return impl_->render(list, add_generation_prompt, {});
}

std::string ChatTemplate::render_json(std::string_view messages, bool add_generation_prompt,
                                      std::string_view variables) const {
    OrderedJson list = parse_input(
        messages, [](const OrderedJson& json) { return json.is_array(); },
        "messages: is not a JSON list of messages");
    for (OrderedJson& message : list) {
        if (!message.is_object() || !message.value("role", OrderedJson()).is_string()) {
            throw Error(ErrorKind::input, "messages: a message is not an object with a role");
        }
        if (!impl_->takes_content_lists && message.contains("content"))
            join_texts(message["content"]);
    }
    const OrderedJson object = parse_input(
        variables, [](const OrderedJson& json) { return json.is_object(); },
        "variables of the chat template: is not a JSON object");
    const jinja::Value values = jinja::Value::from_json(object);
    return impl_->render(jinja::Value::from_json(list), add_generation_prompt, *values.dict());
}

}  // namespace ferry
