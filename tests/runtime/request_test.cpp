#include "runtime/request.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "base/random.h"

namespace ferry {
namespace {

Completion example() {
    Completion completion;
    completion.id = {"a\"b", false};
    completion.num_prompt_tokens = 3;
    completion.text = "line\n\xc3\xa9";
    completion.tokens = {5, 9};
    completion.finish_reason = FinishReason::stop;
    completion.timings = {0.001, 0.02, 0.5};
    return completion;
}

TEST(Completion, JsonHasKeysInFixedOrder) {
    EXPECT_EQ(to_json(example(), true),
              "{\"id\": \"a\\\"b\", \"text\": \"line\\n\xc3\xa9\", \"tokens\": [5, 9], "
              "\"finish_reason\": \"stop\", \"num_prompt_tokens\": 3, \"timings\": {\"queue_s\": "
              "0.001000, \"first_token_s\": 0.020000, \"total_s\": 0.500000}}");
}

TEST(Completion, JsonWithoutTimingsAndWithANumberAsId) {
    Completion completion = example();
    completion.id = {"17", true};
    completion.num_samples = 4;
    completion.sample = 2;
    completion.finish_reason = FinishReason::length;
    EXPECT_EQ(to_json(completion, false),
              "{\"id\": 17, \"sample\": 2, \"text\": \"line\\n\xc3\xa9\", \"tokens\": [5, 9], "
              "\"finish_reason\": \"length\", \"num_prompt_tokens\": 3}");
}

TEST(Completion, LogprobsReadBackToTheSameBits) {
    Completion completion = example();
    const float third = -1.0f / 3.0f;
    completion.logprobs = {third, -1e-30f};
    completion.num_top_logprobs = 1;
    completion.top_logprobs = {{7, -0.1f}, {9, -std::numeric_limits<float>::infinity()}};
    const auto json = nlohmann::json::parse(to_json(completion, false));
    EXPECT_EQ(json["logprobs"][0]["logprob"].get<float>(), third);
    EXPECT_EQ(json["logprobs"][1]["logprob"].get<float>(), -1e-30f);
    EXPECT_EQ(json["logprobs"][0]["token"], 5);
    EXPECT_EQ(json["logprobs"][0]["top"][0][0], 7);
    EXPECT_EQ(json["logprobs"][0]["top"][0][1].get<float>(), -0.1f);
    EXPECT_TRUE(json["logprobs"][1]["top"][0][1].is_null());
}

TEST(Completion, RefusedRequestSaysWhy) {
    Request request;
    request.id = {"q", false};
    request.prompt_tokens = {1, 2};
    const std::string line = to_json(failed_completion(request, "too long"), false);
    EXPECT_EQ(line,
              "{\"id\": \"q\", \"text\": \"\", \"tokens\": [], \"finish_reason\": \"error\", "
              "\"error\": \"too long\", \"num_prompt_tokens\": 2}");
    request.where = "in.jsonl:3";
    EXPECT_EQ(failed_completion(request, "too long").error, "in.jsonl:3: too long");
    EXPECT_EQ(failed_completion(request, "in.jsonl:3: too long").error, "in.jsonl:3: too long");
}

TEST(JsonString, ReplacesBytesThatAreNoUtf8) {
    EXPECT_EQ(json_string("a\xff"), "\"a\xef\xbf\xbd\"");
    EXPECT_EQ(json_string(std::string_view("\0", 1)), "\"\\u0000\"");
}

TEST(HashRequestId, IsThePublishedFnv1aMixed) {
    // FNV-1a of "" and "a" as in draft-eastlake-fnv.
    EXPECT_EQ(hash_request_id(""), mix64(0xcbf29ce484222325u));
    EXPECT_EQ(hash_request_id("a"), mix64(0xaf63dc4c8601ec8cu));
}

}  // namespace
}  // namespace ferry
