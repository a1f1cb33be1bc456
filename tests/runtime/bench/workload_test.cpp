#include "runtime/bench/workload.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

WorkloadOptions options_of(const char* input, const char* output) {
    return {.num_requests = 200,
            .input = parse_length(input, "--input"),
            .output = parse_length(output, "--output"),
            .vocab_size = 1000,
            .seed = 5};
}

TEST(Workload, LengthsAreReadAndWritten) {
    for (const char* text : {"128", "uniform:16:256", "lognormal:100:0.5:1000"})
        EXPECT_EQ(to_string(parse_length(text, "--input")), text);
    EXPECT_EQ(to_string(parse_length("fixed:7", "--input")), "7");
    for (const char* text : {"", "0", "-3", "12x", "uniform:9:3", "uniform:9", "lognormal:100:0.5",
                             "lognormal:0:1:9", "normal:1:2", "uniform:1:2:3", "99999999999"})
        EXPECT_ERROR(parse_length(text, "--input"), ErrorKind::usage, "--input");
}

TEST(Workload, FixedAndUniformLengths) {
    for (const WorkloadRequest& request : make_workload(options_of("12", "5"))) {
        EXPECT_EQ(request.prompt.size(), 12u);
        EXPECT_EQ(request.max_tokens, 5);
        EXPECT_EQ(request.arrival_s, 0);
        EXPECT_THAT(request.prompt, Each(::testing::AllOf(::testing::Ge(0), ::testing::Lt(1000))));
    }
    int64_t least = 1000, most = 0, sum = 0;
    for (const WorkloadRequest& request : make_workload(options_of("uniform:10:20", "1"))) {
        const auto length = static_cast<int64_t>(request.prompt.size());
        least = std::min(least, length);
        most = std::max(most, length);
        sum += length;
    }
    EXPECT_EQ(least, 10);
    EXPECT_EQ(most, 20);
    EXPECT_NEAR(static_cast<double>(sum) / 200, 15, 0.7);
}

TEST(Workload, LognormalHasItsMedianAndStaysInRange) {
    WorkloadOptions options = options_of("lognormal:100:1:400", "1");
    options.num_requests = 2000;
    std::vector<int64_t> lengths;
    for (const WorkloadRequest& request : make_workload(options))
        lengths.push_back(static_cast<int64_t>(request.prompt.size()));
    std::sort(lengths.begin(), lengths.end());
    EXPECT_GE(lengths.front(), 1);
    EXPECT_EQ(lengths.back(), 400);
    EXPECT_NEAR(static_cast<double>(lengths[1000]), 100, 8);
    // One standard deviation above the median: 84.1 % of all.
    EXPECT_NEAR(static_cast<double>(lengths[1683]), 100 * std::exp(1.0), 25);
}

TEST(Workload, IsExactByItsSeed) {
    const WorkloadOptions options = options_of("uniform:1:9", "uniform:1:9");
    const std::vector<WorkloadRequest> once = make_workload(options),
                                       again = make_workload(options);
    WorkloadOptions other = options;
    other.seed = 6;
    const std::vector<WorkloadRequest> different = make_workload(other);
    int num_different = 0;
    for (size_t i = 0; i < once.size(); ++i) {
        EXPECT_EQ(once[i].prompt, again[i].prompt);
        EXPECT_EQ(once[i].max_tokens, again[i].max_tokens);
        num_different += once[i].prompt != different[i].prompt ? 1 : 0;
    }
    EXPECT_GT(num_different, 150);
    // A request does not depend on how many there are, and these are the values on every machine.
    WorkloadOptions few = options;
    few.num_requests = 3;
    const std::vector<WorkloadRequest> first = make_workload(few);
    ASSERT_EQ(first.size(), 3u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(first[i].prompt, once[i].prompt);
}

TEST(Workload, PrefixesAreShared) {
    WorkloadOptions options = options_of("uniform:20:40", "1");
    options.prefix_share = 0.5;
    const std::vector<WorkloadRequest> workload = make_workload(options);
    for (size_t i = 1; i < workload.size(); ++i) {
        const size_t shared = std::min(workload[0].prompt.size(), workload[i].prompt.size()) / 2;
        EXPECT_TRUE(std::equal(workload[0].prompt.begin(),
                               workload[0].prompt.begin() + static_cast<std::ptrdiff_t>(shared),
                               workload[i].prompt.begin()));
        EXPECT_NE(workload[0].prompt.back(), -1);
    }
    options.prefix_share = 1;
    options.input = parse_length("30", "--input");
    const std::vector<WorkloadRequest> same = make_workload(options);
    for (const WorkloadRequest& request : same) EXPECT_EQ(request.prompt, same[0].prompt);
}

TEST(Workload, ArrivalsAreReproducibleAndHaveTheirRate) {
    WorkloadOptions options = options_of("1", "1");
    options.arrivals = WorkloadOptions::Arrivals::fixed;
    options.rate = 4;
    const std::vector<WorkloadRequest> even = make_workload(options);
    EXPECT_EQ(even[0].arrival_s, 0);
    EXPECT_EQ(even[6].arrival_s, 1.5);

    options.arrivals = WorkloadOptions::Arrivals::poisson;
    options.num_requests = 4000;
    const std::vector<WorkloadRequest> once = make_workload(options),
                                       again = make_workload(options);
    double squares = 0, before = 0;
    for (size_t i = 0; i < once.size(); ++i) {
        EXPECT_EQ(once[i].arrival_s, again[i].arrival_s);
        const double gap = once[i].arrival_s - before;
        EXPECT_GT(gap, 0);
        squares += gap * gap;
        before = once[i].arrival_s;
    }
    EXPECT_NEAR(before, 1000, 50);                // 4000 requests at 4 per second
    EXPECT_NEAR(squares / 4000, 2.0 / 16, 0.02);  // exponential: E[gap^2] = 2 / rate^2
}

TEST(Workload, LengthsFromAFile) {
    const testing::TempDir dir;
    const std::string path = dir / "lengths.jsonl";
    std::ofstream(path) << "{\"prompt_tokens\": 3, \"max_tokens\": 2}\n\n"
                           "{\"prompt_tokens\": [7, 8], \"max_tokens\": 9}\n"
                           "{\"input\": 4, \"output\": 1}\n";
    WorkloadOptions options{.num_requests = 0, .lengths = read_lengths(path), .vocab_size = 9};
    std::vector<int64_t> inputs, outputs;
    for (const WorkloadRequest& request : make_workload(options)) {
        inputs.push_back(static_cast<int64_t>(request.prompt.size()));
        outputs.push_back(request.max_tokens);
    }
    EXPECT_THAT(inputs, ElementsAre(3, 2, 4));
    EXPECT_THAT(outputs, ElementsAre(2, 9, 1));
    options.num_requests = 5;
    EXPECT_EQ(make_workload(options)[3].max_tokens, 2);  // from the start again

    for (const char* bad :
         {"[1]\n", "{\"prompt_tokens\": 0, \"max_tokens\": 1}\n", "no\n",
          "{\"prompt_tokens\": 1}\n", "{\"prompt_tokens\": \"a\", \"output\": 1}"}) {
        std::ofstream(path, std::ios::trunc) << "{\"input\": 4, \"output\": 1}\n" << bad;
        EXPECT_ERROR(read_lengths(path), ErrorKind::input, "lengths.jsonl:2");
    }
    std::ofstream(path, std::ios::trunc);
    EXPECT_ERROR(read_lengths(path), ErrorKind::input, "holds no lines");
    EXPECT_ERROR(read_lengths(dir / "none"), ErrorKind::input, "none");
}

TEST(Workload, ReaderWaitsForArrivals) {
    const std::vector<WorkloadRequest> workload{{.arrival_s = 0, .prompt = {1}, .max_tokens = 3},
                                                {.arrival_s = 2, .prompt = {2}, .max_tokens = 4}};
    double now_s = 0;
    WorkloadReader reader(workload, 2, 9, [&] { return now_s; });
    RequestLine line;
    EXPECT_TRUE(reader.ready());
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.requests[0].sampling.max_tokens, 3);
    EXPECT_TRUE(line.requests[0].sampling.ignore_eos);
    EXPECT_FALSE(reader.ready());
    EXPECT_EQ(reader.next_arrival_s(), 2);
    now_s = 2;
    EXPECT_TRUE(reader.ready());
    EXPECT_TRUE(reader.skip());
    line = {};
    EXPECT_TRUE(reader.ready());
    EXPECT_FALSE(reader.next(line));
}

}  // namespace
}  // namespace ferry
