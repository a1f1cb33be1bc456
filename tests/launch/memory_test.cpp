// Memory of long runs: whatever the number and length of requests, what the process holds after it
// has warmed up stays what it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::ProcessResult;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

constexpr int64_t kMaxGrowthBytes = 2 << 20;

std::string request_line(int index, int prompt_length, int max_tokens) {
    std::string line = "{\"prompt_tokens\": [";
    for (int i = 0; i < prompt_length; ++i)
        line += (i > 0 ? "," : "") + std::to_string((index * 31 + i * i % 251 + i / 7) % 256);
    return line + "], \"max_tokens\": " + std::to_string(max_tokens) + "}\n";
}

// Most of a third of the samples on; the first third is warm-up. On a busy machine starting, before
// there is a model, may take longer than that: it does not count.
void expect_flat(const ProcessResult& result, int num_requests, const TempDir& dir) {
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string lines = read_file(dir / "out/completions.jsonl");
    EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), num_requests);
    EXPECT_EQ(lines.find("\"error\""), std::string::npos);
    const auto& samples = result.own_bytes;
    ASSERT_GT(samples.size(), 100u);
    const auto begin =
        std::ranges::find_if(samples, [&](int64_t bytes) { return bytes >= samples.back() / 2; });
    const auto third = begin + std::distance(begin, samples.end()) / 3;
    ASSERT_NE(third, begin);
    const int64_t warm = *std::max_element(begin, third);
    const int64_t most = *std::max_element(third, samples.end());
    EXPECT_LT(most - warm, kMaxGrowthBytes) << warm << " bytes, later " << most;
    std::printf("%d requests: %.1f MiB when warm, then %.1f MiB at most\n", num_requests,
                static_cast<double>(warm) / (1 << 20), static_cast<double>(most) / (1 << 20));
}

ProcessResult generate(const TempDir& dir, const std::string& lines,
                       std::vector<std::string> settings) {
    write_file(dir / "in.jsonl", lines);
    std::vector<std::string> arguments{FERRY_BINARY,     "generate", "--input",
                                       dir / "in.jsonl", "--output", dir / "out"};
    settings.insert(settings.end(),
                    {"model.dummy=" FERRY_SOURCE_DIR "/tests/launch/tiny_model.yaml",
                     "sampling.ignore_eos=true", "engine.threads=1", "log.progress=off"});
    for (const std::string& setting : settings) {
        arguments.push_back("--set");
        arguments.push_back(setting);
    }
    return testing::run_process(arguments);
}

TEST(Memory, TenThousandShortRequests) {
    const TempDir dir;
    std::string lines;
    for (int i = 0; i < 10000; ++i) lines += request_line(i, 1 + i % 100, 1 + i % 8);
    expect_flat(generate(dir, lines, {"engine.cache_pages=64"}), 10000, dir);
}

// The cache holds four of them at a time: the others wait, and prefixes are evicted.
TEST(Memory, ThirtyTwoLongRequests) {
    const TempDir dir;
    std::string lines;
    for (int i = 0; i < 32; ++i) lines += request_line(i, 8192 - 64, 64);
    expect_flat(generate(dir, lines, {"engine.cache_pages=512"}), 32, dir);
}

}  // namespace
}  // namespace ferry
