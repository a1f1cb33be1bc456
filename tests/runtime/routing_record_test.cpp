#include "runtime/routing_record.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

TEST(RoutingRecord, ReadsBackWhatWasKept) {
    RoutingRecorder recorder;
    std::vector<int32_t> experts{3, 1, 0, 2};
    const Tensor rows(experts.data(), DType::i32, {2, 2});
    recorder.add(1, rows);  // not started yet
    EXPECT_EQ(recorder.lines(0), "");
    recorder.start();
    recorder.add(1, rows);
    recorder.add(2, rows.slice_rows(0, 0));
    recorder.add(2, rows.slice_rows(1, 1));
    EXPECT_EQ(recorder.lines(5),
              "{\"attention_rank\": 5, \"layer\": 1, \"experts\": [[3, 1], [0, 2]]}\n"
              "{\"attention_rank\": 5, \"layer\": 2, \"experts\": [[0, 2]]}\n");
    const RoutingRecord record = parse_routing_record(
        RoutingRecorder::first_line(4, 2) + recorder.lines(5) + recorder.lines(2), "r.jsonl");
    EXPECT_EQ(record.num_experts, 4);
    EXPECT_EQ(record.topk, 2);
    EXPECT_EQ(record.choices, std::vector(2, std::vector<int32_t>{3, 1, 0, 2, 0, 2}));
}

TEST(RoutingRecord, RefusesWhatItCannotReplay) {
    const auto refused = [](const std::string& lines, const std::string& part) {
        EXPECT_ERROR(parse_routing_record(lines, "r.jsonl"), ErrorKind::input, "r.jsonl", part);
    };
    const std::string first = RoutingRecorder::first_line(4, 2);
    refused("", "no choices");
    refused("nonsense", "r.jsonl:1: is no JSON object");
    refused("{\"experts\": 4}", "top_k is not a number of 1 ... 4");
    refused("{\"experts\": 4, \"top_k\": 5}", "top_k");
    refused(first, "no choices");
    refused(first + "{\"experts\": [[0, 1]]}", "r.jsonl:2: attention_rank");
    refused(first + "{\"attention_rank\": 0, \"experts\": [[0]]}", "other than 2 experts");
    refused(first + "{\"attention_rank\": 0, \"experts\": [[0, 4]]}", "not one of 4");
    refused(first + "{\"attention_rank\": 0, \"experts\": [[1, 1]]}", "twice");
}

}  // namespace
}  // namespace ferry
