#include "runtime/request_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One token per byte; messages become their JSON's length.
PromptEncoder byte_encoder() {
    PromptEncoder encoder;
    encoder.encode_text = [](std::string_view text) {
        if (text == "poison") throw Error(ErrorKind::input, "the pattern gives up");
        return std::vector<int32_t>(text.begin(), text.end());
    };
    encoder.encode_messages = [](const std::string& json, const std::string&) {
        return std::vector<int32_t>{static_cast<int32_t>(json.size())};
    };
    encoder.vocab_size = 1000;
    return encoder;
}

RequestLine parse(const std::string& text, const SamplingParams& defaults = {}) {
    RequestParser parser("in.jsonl", defaults, byte_encoder());
    return parser.parse(text, 7);
}

TEST(RequestParser, PromptAndDefaults) {
    const RequestLine line = parse(R"({"prompt": "hi"})", {.temperature = 0.5});
    ASSERT_EQ(line.requests.size(), 1u);
    const Request& request = line.requests[0];
    EXPECT_EQ(request.index, 6);
    EXPECT_EQ(request.id, (RequestId{"7", true}));
    EXPECT_THAT(request.prompt_tokens, ElementsAre('h', 'i'));
    EXPECT_EQ(request.sampling.temperature, 0.5);
    EXPECT_FALSE(line.failed);
}

TEST(RequestParser, EverySamplingField) {
    const RequestLine line = parse(
        R"({"id": "x", "prompt_tokens": [5, 999], "temperature": 1, "top_k": 40, "top_p": 0.9,
            "min_p": 1e-2, "repetition_penalty": 1.1, "seed": 18446744073709551615,
            "max_tokens": 9, "min_tokens": 2, "stop": "END", "stop_token_ids": [3],
            "ignore_eos": true, "logprobs": 5})");
    ASSERT_FALSE(line.failed) << line.failed->error;
    const SamplingParams& s = line.requests[0].sampling;
    EXPECT_EQ(s, (SamplingParams{.temperature = 1,
                                 .top_k = 40,
                                 .top_p = 0.9,
                                 .min_p = 0.01,
                                 .repetition_penalty = 1.1,
                                 .seed = UINT64_MAX,
                                 .max_tokens = 9,
                                 .min_tokens = 2,
                                 .stop = {"END"},
                                 .stop_token_ids = {3},
                                 .ignore_eos = true,
                                 .logprobs = 5}));
    EXPECT_EQ(line.requests[0].id, (RequestId{"x", false}));
    EXPECT_THAT(line.requests[0].prompt_tokens, ElementsAre(5, 999));
}

TEST(RequestParser, NullLogprobsTurnsThemOff) {
    EXPECT_FALSE(parse(R"({"prompt": "a", "logprobs": null})", {.logprobs = 3})
                     .requests[0]
                     .sampling.logprobs);
}

TEST(RequestParser, NullIsAsLeftOut) {
    const RequestLine line = parse(
        R"({"id": null, "messages": null, "prompt": "a", "tools": null, "stop": null, "seed": null})",
        {.stop = {"END"}});
    ASSERT_FALSE(line.failed) << line.failed->error;
    EXPECT_EQ(line.requests[0].id, (RequestId{"7", true}));
    EXPECT_THAT(line.requests[0].sampling.stop, ElementsAre("END"));
    EXPECT_FALSE(parse(R"({"messages": [{"role": "user", "content": "x"}],
                           "tools": null, "chat_template_kwargs": null})")
                     .failed);
    EXPECT_THAT(parse(R"({"prompt": null})").failed->error, HasSubstr("has none of"));
}

TEST(RequestParser, SamplesAreRequestsOfTheirOwn) {
    const RequestLine line = parse(R"({"prompt": "a", "n": 3})");
    ASSERT_EQ(line.requests.size(), 3u);
    for (int64_t i = 0; i < 3; ++i) {
        EXPECT_EQ(line.requests[static_cast<size_t>(i)].sample, i);
        EXPECT_EQ(line.requests[static_cast<size_t>(i)].index, 6);
    }
}

TEST(RequestParser, MessagesGoToTheTemplateAsTheyAre) {
    std::vector<std::string> given;
    PromptEncoder encoder = byte_encoder();
    encoder.encode_messages = [&given](const std::string& messages, const std::string& variables) {
        given = {messages, variables};
        return std::vector<int32_t>{1};
    };
    RequestParser parser("in.jsonl", {}, encoder);
    const auto parse_line = [&](const std::string& more) {
        return parser.parse(
            R"({"messages": [{"role": "user", "content": "x", "extra": {"b": [1], "a": 2}}])" +
                more + "}",
            7);
    };
    const char* const messages = R"([{"role":"user","content":"x","extra":{"b":[1],"a":2}}])";
    ASSERT_FALSE(parse_line("").failed);
    EXPECT_THAT(given, ElementsAre(messages, "{}"));
    ASSERT_FALSE(
        parse_line(R"(, "chat_template_kwargs": {"thinking": true, "a": 1}, "tools": [{"b": 1}])")
            .failed);
    EXPECT_THAT(given, ElementsAre(messages, R"({"thinking":true,"a":1,"tools":[{"b":1}]})"));
    std::string deep = "1";
    for (int i = 0; i < 20; ++i) deep = R"({"properties":)" + deep + "}";
    ASSERT_FALSE(parse_line(R"(, "tools": [)" + deep + "]").failed);
    EXPECT_THAT(parse_line(R"(, "tools": {})").failed->error, HasSubstr("tools: must be a list"));
    EXPECT_THAT(parse_line(R"(, "chat_template_kwargs": [])").failed->error,
                HasSubstr("chat_template_kwargs: must be an object"));
    EXPECT_THAT(parse_line(R"(, "chat_template_kwargs": {"messages": []})").failed->error,
                HasSubstr("messages is no variable to set"));
    EXPECT_THAT(parse(R"({"prompt": "a", "tools": []})").failed->error,
                HasSubstr("tools: goes with messages only"));
}

TEST(RequestParser, FieldsOfTheUsersOwnArePassedOver) {
    const RequestLine line =
        parse(R"({"prompt": "a", "idx": 4, "category": "science", "answer": {"deep": []}})");
    EXPECT_FALSE(line.failed);
    for (const char* field : {"prompt_id", "prompts", "message_id", "topic", "store", "num_tokens"})
        EXPECT_FALSE(parse(fmt::format(R"({{"prompt": "a", "{}": 1}})", field)).failed) << field;
}

struct BadLine {
    const char* text;
    const char* what;
};

TEST(RequestParser, BadLinesSayWhat) {
    const BadLine all[] = {
        {"{\"prompt\": \"a\"", "in.jsonl:7: not valid JSON"},
        {"", "not valid JSON"},
        {"1", "must be a JSON object"},
        {" [", "must be a JSON object, one in each line, and is a list"},
        {"{\"prompt\": \"\xff\"}", "not valid JSON"},
        {R"({"prompt": "a", "prompt": "b"})", "twice"},
        {R"({"id": "a"})", "has none of"},
        {R"({"prompt": "a", "prompt_tokens": [1]})", "has several of"},
        {R"({"prompt": 5})", "prompt: must be a string"},
        {R"({"prompt": ""})", "the prompt has no tokens"},
        {R"({"prompt": "poison"})", "in.jsonl:7: the pattern gives up"},
        {R"({"prompt_tokens": []})", "the prompt has no tokens"},
        {R"({"prompt_tokens": [1, -1]})", "entry 1 is"},
        {R"({"prompt_tokens": [1.5]})", "must be a list of token ids"},
        {R"({"prompt_tokens": [99999999999999999999]})", "must be a list of token ids"},
        {R"({"prompt_tokens": [1000]})", "token 1000 is outside the model's vocabulary of 1000"},
        {R"({"messages": []})", "must be a list of messages"},
        {R"({"messages": [{"content": "x"}]})", "must be an object with a \"role\""},
        {R"({"messages": [{"role": "user", "content": ["x"]}]})",
         "a content that is a list must hold"},
        {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})",
         "messages: a content holds \"image_url\"; only text is taken"},
        {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
         "no \"text\" that is a string"},
        {R"({"id": [1], "prompt": "a"})", "id: must be a string or an integer"},
        {R"({"id": 1.5, "prompt": "a"})", "id: must be a string or an integer"},
        {R"({"prompt": "a", "temperature": "hot"})",
         "in.jsonl:7: temperature: must be a number, 0 .. 100; is the text \"hot\""},
        {R"({"prompt": "a", "temperature": -1})", "temperature: must be a number"},
        {R"({"prompt": "a", "top_k": 1.5})", "top_k: must be an integer"},
        {R"({"prompt": "a", "n": 0})", "n: must be an integer, 1 .. 4096"},
        {R"({"prompt": "a", "max_tokens": 0})", "max_tokens: must be"},
        {R"({"prompt": "a", "min_tokens": 129})", "min_tokens is more than max_tokens"},
        {R"({"prompt": "a", "temprature": 1})", "did you mean temperature?"},
        {R"({"prompts": "a"})", "did you mean prompt?"},
        {R"({"prompt": "a", "max_token": 1})", "did you mean max_tokens?"},
        {R"({"prompt": "a", "max_new_tokens": 1})", "no such field; use max_tokens"},
    };
    for (const BadLine& bad : all) {
        const RequestLine line = parse(bad.text);
        ASSERT_TRUE(line.failed) << bad.text;
        EXPECT_TRUE(line.requests.empty());
        EXPECT_THAT(line.failed->error, HasSubstr(bad.what)) << bad.text;
        EXPECT_THAT(line.failed->error, ::testing::StartsWith("in.jsonl:7: ")) << bad.text;
        EXPECT_EQ(line.failed->index, 6);
        EXPECT_EQ(line.failed->finish_reason, FinishReason::error);
    }
}

TEST(RequestParser, ABadLineKeepsItsIdWhenItHasOne) {
    EXPECT_EQ(parse(R"({"id": "mine"})").failed->id, (RequestId{"mine", false}));
    EXPECT_EQ(parse("nonsense").failed->id, (RequestId{"7", true}));
}

TEST(RequestParser, WithoutTokenizerOrTemplate) {
    RequestParser parser("in", {}, {});
    EXPECT_THAT(parser.parse(R"({"prompt": "a"})", 1).failed->error, HasSubstr("no tokenizer"));
    const char* messages = R"({"messages": [{"role": "user"}]})";
    EXPECT_THAT(parser.parse(messages, 2).failed->error,
                HasSubstr("messages: this model has no tokenizer; use prompt_tokens"));
    const PromptEncoder of_text{.encode_text = byte_encoder().encode_text, .encode_messages = {}};
    EXPECT_THAT(RequestParser("in", {}, of_text).parse(messages, 1).failed->error,
                HasSubstr("model.chat_template"));
    EXPECT_EQ(parser.parse(R"({"prompt_tokens": [5000000]})", 3).requests.size(), 1u);
}

TEST(RequestReader, BlankLinesCountButGiveNothing) {
    const testing::TempDir dir;
    testing::write_file(dir / "in.jsonl",
                        "\xef\xbb\xbf{\"prompt\": \"a\"}\r\n\n  \nbad\n{\"prompt\": \"b\"}");
    const auto reader = read_jsonl(dir / "in.jsonl", {}, byte_encoder());
    std::vector<int64_t> indices;
    std::vector<bool> failed;
    RequestLine line;
    while (reader->next(line)) {
        indices.push_back(line.index);
        failed.push_back(line.failed.has_value());
    }
    EXPECT_THAT(indices, ElementsAre(0, 3, 4));
    EXPECT_THAT(failed, ElementsAre(false, true, false));
}

TEST(RequestReader, MissingFileIsAnInputError) {
    EXPECT_ERROR(read_jsonl("/nowhere.jsonl", {}, byte_encoder()), ErrorKind::input,
                 "/nowhere.jsonl");
}

TEST(RequestParser, WhatATemplateCannotRenderIsTheRequests) {
    PromptEncoder encoder = byte_encoder();
    encoder.encode_messages = [](const std::string&, const std::string&) -> std::vector<int32_t> {
        throw Error(ErrorKind::checkpoint, "template:1: string + none");
    };
    RequestParser parser("in", {}, encoder);
    EXPECT_EQ(parser.parse(R"({"messages": [{"role": "user"}]})", 2).failed->error,
              "in:2: messages: the model's chat template cannot render them: template:1: string + "
              "none");
    EXPECT_THAT(parser.from_prompt("caf\xe9", 1).failed->error, HasSubstr("is not UTF-8"));
}

TEST(RequestReader, CompressedInputIsNoText) {
    const testing::TempDir dir;
    testing::write_file(dir / "in.jsonl.gz", "\x1f\x8b\x08\nmore");
    RequestLine line;
    EXPECT_ERROR(read_jsonl(dir / "in.jsonl.gz", {}, byte_encoder())->next(line), ErrorKind::input,
                 "in.jsonl.gz: is compressed");
}

TEST(RequestReader, PromptsAreNumberedFromOne) {
    const auto reader = read_prompts({"ab", "", "c"}, {.max_tokens = 3}, byte_encoder());
    RequestLine line;
    ASSERT_TRUE(reader->next(line));
    EXPECT_EQ(line.requests[0].id, (RequestId{"1", true}));
    EXPECT_EQ(line.requests[0].sampling.max_tokens, 3);
    ASSERT_TRUE(reader->next(line));
    EXPECT_TRUE(line.failed);
    ASSERT_TRUE(reader->next(line));
    EXPECT_EQ(line.index, 2);
    EXPECT_FALSE(reader->next(line));
}

}  // namespace
}  // namespace ferry
