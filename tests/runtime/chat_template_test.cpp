#include "runtime/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "base/error.h"

namespace ferry {
namespace {

using testing::HasSubstr;

ChatTemplate make(std::string_view source) {
    return ChatTemplate(source, {"<s>", "</s>"}, "t.jinja");
}

std::string error_of(ErrorKind kind, const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
        return error.what();
    }
    return "no error";
}

std::string parse_error(std::string_view source) {
    return error_of(ErrorKind::checkpoint, [&] { make(source); });
}

std::string render_error(std::string_view source) {
    return error_of(ErrorKind::input, [&] { make(source).render({{"user", "hi"}}); });
}

TEST(ChatTemplate, RendersMessages) {
    const ChatTemplate chat = make(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}");
    EXPECT_EQ(chat.render({{"system", "be"}, {"user", "hi"}}),
              "<s>[system] be</s>[user] hi</s>[assistant]");
    EXPECT_EQ(chat.render({{"user", "hi"}}, false), "<s>[user] hi</s>");
    EXPECT_EQ(chat.render({}), "<s>[assistant]");
}

TEST(ChatTemplate, RepairsMessagesAndRefusesATemplateThatIsNotUtf8) {
    const ChatTemplate chat = make("{{ messages[0].content[-1] }}");
    EXPECT_EQ(chat.render({{"user", "a\xe4\xbd"}}), "\uFFFD");
    EXPECT_THAT(parse_error("{{ 'a\xe4\xbd' }}"),
                HasSubstr("t.jinja: the chat template is not UTF-8"));
}

TEST(ChatTemplate, TakesJsonMessagesAndVariables) {
    const ChatTemplate chat = make("{{ messages[0].n + k }}{{ messages[0].missing }}");
    EXPECT_EQ(chat.render_json(R"([{"role": "user", "n": 40}])", true, R"({"k": 2})"), "42");
    const auto render = [&](const char* messages) {
        return error_of(ErrorKind::input, [&] { chat.render_json(messages); });
    };
    EXPECT_THAT(render("{}"), HasSubstr("not a JSON list"));
    EXPECT_THAT(render("[1]"), HasSubstr("not an object with a role"));
    EXPECT_THAT(render("[{\"role\""), HasSubstr("not a JSON list"));
    const std::string deep =
        "[{\"role\":\"a\",\"c\":" + std::string(5000, '[') + std::string(5000, ']') + "}]";
    EXPECT_THAT(render(deep.c_str()), HasSubstr("nested too deeply"));
}

TEST(ChatTemplate, GivesContentListsToTemplatesThatGoThroughThem) {
    const char* const parts = R"([{"role": "user", "content": [{"type": "text", "text": "a"},
                                                               {"type": "text", "text": "b"}]}])";
    const auto render = [&](std::string_view source) { return make(source).render_json(parts); };
    for (const char* of_texts : {
             "{{ '<' + messages[0]['content'] }}",
             "{% for m in messages %}{{ '<' ~ m.content }}{% endfor %}",
             "{% set content = messages[0].content %}<{{ content | trim }}",
             "{% macro f(m) %}<{{ m.get('content') }}{% endmacro %}{{ f(messages[0]) }}",
             "{% for content in [1] %}<{{ messages[0].content }}{% endfor %}",
         })
        EXPECT_EQ(render(of_texts), "<a\nb") << of_texts;
    const auto loop = [](const std::string& content) {
        return "{% for p in " + content + " %}{{ loop.index ~ p.text }}{% endfor %}";
    };
    for (const std::string& of_lists : {
             loop("messages[0].content"),
             "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}" +
                 loop("m.content") + "{% endif %}{% endfor %}",
             loop("messages[0]['content'] | selectattr('type', 'equalto', 'text')"),
             "{% set c = messages[0].get('content') or [] %}" + loop("c[0:]"),
             "{% set n = namespace(c=[]) %}{% set n.c = messages[0].content %}" + loop("n.c"),
             "{% macro f(x, y) %}" + loop("y") + "{% endmacro %}{{ f(1, messages[0].content) }}",
             "{% macro f(x, y) %}" + loop("y") + "{% endmacro %}{{ f(1, y=messages[0].content) }}",
             std::string("1{{ messages[0].content | map(attribute='text') | join('2') }}"),
         })
        EXPECT_EQ(render(of_lists), "1a2b") << of_lists;
}

// Texts from jinja2.
TEST(ChatTemplate, CallsMacros) {
    const auto render = [](std::string_view source) {
        return make(source).render({{"user", "hi"}});
    };
    EXPECT_EQ(render("{% macro f(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}"
                     "{{ f(1) }}{{ f(1, 3) }}{{ f(b=1, a=0) }}{{ f()|length }}"),
              "1-2-1;1-3-1;0-1-0;4");
    EXPECT_EQ(render("{% macro f(x) -%}\n  a{{ x }}\n{%- endmacro %}\n{{ f(1) ~ f('b') }}\n"),
              "a1ab");
    EXPECT_EQ(
        render(
            "{% macro f(x) %}{{ x }}{% if x %}{{ f(x - 1) }}{% endif %}{% endmacro %}"
            "{% macro g() %}{{ f(2) }}{{ q }}{% set q = 9 %}{{ q }}{% endmacro %}"
            "{% set q = 1 %}{% for i in [7] %}{{ g() }}{{ i }}{{ loop.index }}{% endfor %}{{ q }}"),
        "21019711");
    EXPECT_EQ(render("{% macro f() %}{{ i is defined }}{{ loop is defined }}{% endmacro %}"
                     "{% for i in [1] %}{{ f() }}{% endfor %}"),
              "FalseFalse");
    EXPECT_EQ(
        render("{% set n = namespace(c=0) %}{% macro f() %}{% set n.c = n.c + 1 %}{% endmacro %}"
               "{{ f() }}{{ f() }}{{ n.c }}"),
        "2");
    const std::string f = "{% macro f(x) %}{{ f(x) }}{% endmacro %}";
    EXPECT_THAT(render_error(f + "{{ f(1) }}"), HasSubstr("macros call each other too deeply"));
    EXPECT_THAT(render_error(f + "{{ f(1, 2) }}"), HasSubstr("macro 'f' takes 1 arguments"));
    EXPECT_THAT(render_error(f + "{{ f(y=1) }}"), HasSubstr("macro 'f' has no argument 'y'"));
    EXPECT_THAT(render_error("{{ f(1) }}" + f), HasSubstr("function 'f' is not supported"));
    std::string sum = "0";
    for (int i = 0; i < 2000; ++i) sum += "+1";
    EXPECT_THAT(
        render_error("{% macro f(x) %}{{ f(x)" + sum.substr(1) + " }}{% endmacro %}{{ f(1) }}"),
        HasSubstr("nested too deeply"));
}

TEST(ChatTemplate, MapsWhatIsMissingToADefault) {
    EXPECT_EQ(
        make("{{ messages | map(attribute='name', default='?') | join }}").render({{"user", "hi"}}),
        "?");
}

TEST(ChatTemplate, NamesWhatIsNotSupportedAndTheLine) {
    EXPECT_THAT(parse_error("a\n{% call f() %}{% endcall %}"),
                HasSubstr("t.jinja:2: statement 'call' is not supported"));
    EXPECT_THAT(parse_error("{% for i in x %}\n{% macro f() %}{% endmacro %}{% endfor %}"),
                HasSubstr("t.jinja:2: a macro within another block is not supported"));
    EXPECT_THAT(parse_error("\n\n{{ x | sort }}"), HasSubstr("t.jinja:3: filter 'sort'"));
    EXPECT_THAT(parse_error("{{ x is callable }}"), HasSubstr("t.jinja:1: test 'callable'"));
    EXPECT_THAT(parse_error("{% if x %}\n\n"), HasSubstr("t.jinja:1: block has no 'endif'"));
    EXPECT_THAT(parse_error("{{ x ** 2 }}"), HasSubstr("operator '**'"));
    EXPECT_THAT(parse_error("{{ 1 < x < 3 }}"), HasSubstr("chain of comparisons"));
    EXPECT_THAT(parse_error("{{ x"), HasSubstr("t.jinja:1: tag has no end"));
    EXPECT_THAT(parse_error("{# x"), HasSubstr("t.jinja:1: comment has no end"));
}

TEST(ChatTemplate, NamesWhatARenderRefusesAndTheLine) {
    EXPECT_THAT(render_error("\n{{ raise_exception('no\nway') }}"), HasSubstr("t.jinja:2: no way"));
    EXPECT_THAT(render_error("{{ strftime_now('%d') }}"), HasSubstr("function 'strftime_now'"));
    EXPECT_THAT(render_error("{{ messages }}"), HasSubstr("a list cannot be printed"));
    EXPECT_THAT(render_error("{{ x.y }}"), HasSubstr("'y' of an undefined value"));
    EXPECT_THAT(render_error("{{ 'a'.zfill(3) }}"), HasSubstr("method 'zfill' of string"));
}

TEST(ChatTemplate, BoundsDepthAndTime) {
    EXPECT_THAT(parse_error("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}"),
                HasSubstr("t.jinja:1: "));
    std::string nested, sum = "{{ 1";
    for (int i = 0; i < 500; ++i) nested += "{% if x %}";
    for (int i = 0; i < 100'000; ++i) sum += " + 1";
    EXPECT_THAT(parse_error(nested), HasSubstr("nested too deeply"));
    EXPECT_THAT(parse_error(sum + " }}"), HasSubstr("tag is too long"));
    EXPECT_THAT(render_error("{% for a in range(100000) %}{% for b in range(100000) %}"
                             "{% endfor %}{% endfor %}"),
                HasSubstr("does not end"));
    EXPECT_THAT(render_error("{% set n = namespace(s='abcdefgh') %}{% for a in range(99) %}"
                             "{% set n.s = n.s + n.s %}{% endfor %}"),
                HasSubstr("too long"));
}

class ChatTemplateFolder : public testing::Test {
  protected:
    ~ChatTemplateFolder() override { std::filesystem::remove_all(folder_); }
    void write(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories(folder_);
        std::ofstream(folder_ / name) << text;
    }
    const std::filesystem::path folder_ = std::filesystem::temp_directory_path() /
                                          ("ferry_chat_template_" + std::to_string(getpid()));
};

TEST_F(ChatTemplateFolder, ReadsTokenizerConfig) {
    EXPECT_FALSE(ChatTemplate::load(folder_).has_value());
    write("tokenizer_config.json", R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>"})");
    EXPECT_FALSE(ChatTemplate::load(folder_).has_value());
    EXPECT_EQ(ChatTemplate::load_special_tokens(folder_).bos_token, "<b>");
    EXPECT_EQ(ChatTemplate::load_special_tokens(folder_).eos_token, "<e>");
    EXPECT_FALSE(ChatTemplate::load_special_tokens(folder_).adds_bos);
    write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizerFast"})");
    EXPECT_EQ(ChatTemplate::load_special_tokens(folder_).adds_bos, true);
    EXPECT_EQ(ChatTemplate::load_special_tokens(folder_).adds_eos, false);
    write("tokenizer_config.json", R"({"bos_token": "<b>", "chat_template": "{{ bos_token }}1"})");
    EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "<b>1");
    write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "2"},
                                                         {"name": "default", "template": "3"}]})");
    EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "3");
    write("chat_template.jinja", "4{{ bos_token }}\n");
    EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "4");
}

TEST_F(ChatTemplateFolder, RefusesADamagedConfig) {
    write("tokenizer_config.json", "{\"chat_template\": ");
    EXPECT_THAT(error_of(ErrorKind::checkpoint, [&] { ChatTemplate::load(folder_); }),
                HasSubstr("tokenizer_config.json: is not a JSON object"));
    write("tokenizer_config.json", R"({"chat_template": "{% include 'x' %}"})");
    EXPECT_THAT(error_of(ErrorKind::checkpoint, [&] { ChatTemplate::load(folder_); }),
                HasSubstr("tokenizer_config.json: chat_template:1: statement 'include'"));
}

}  // namespace
}  // namespace ferry
