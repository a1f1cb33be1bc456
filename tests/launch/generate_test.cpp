// ferry generate as users meet it, on one rank.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/launch/cli.h"

namespace ferry {
namespace {

using testing::expect_error;
using testing::ferry;
using ::testing::HasSubstr;
using testing::kDemo;
using ::testing::Not;
using testing::ProcessOptions;
using testing::ProcessResult;
using testing::read_file;
using testing::run_process;
using ::testing::StartsWith;
using testing::TempDir;
using testing::write_file;

class GenerateTest : public ::testing::Test {
  protected:
    static constexpr int kRequests = 40;

    void SetUp() override {
        std::string lines;
        for (int i = 0; i < kRequests; ++i)
            lines += "{\"id\": \"r" + std::to_string(i) + "\", \"prompt\": \"She said " +
                     std::to_string(i) + "\", \"temperature\": 1}\n";
        write_file(dir_ / "in.jsonl", lines);
    }

    std::vector<std::string> arguments(const std::string& out, int max_tokens = 12) const {
        return {"generate",
                "--model",
                kDemo,
                "--input",
                dir_ / "in.jsonl",
                "--output",
                dir_ / out,
                "--set",
                "output.timings=false",
                "--set",
                "engine.threads=1",
                "--set",
                "sampling.max_tokens=" + std::to_string(max_tokens)};
    }
    std::string completions(const std::string& out) const {
        return read_file(dir_ / (out + "/completions.jsonl"));
    }

    TempDir dir_;
};

TEST_F(GenerateTest, JsonlInJsonlOutInOrder) {
    const ProcessResult result = ferry(arguments("out"));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    std::istringstream lines(completions("out"));
    int index = 0;
    for (std::string line; std::getline(lines, line); ++index) {
        const auto json = nlohmann::json::parse(line);
        EXPECT_EQ(json["id"], "r" + std::to_string(index));
        EXPECT_LE(json["tokens"].size(), 12u);
        EXPECT_FALSE(json.contains("timings"));
    }
    EXPECT_EQ(index, kRequests);

    // Once more: nothing to do, nothing changed.
    const std::string before = completions("out");
    const ProcessResult again = ferry(arguments("out"));
    EXPECT_EQ(again.exit_code, 0);
    EXPECT_THAT(again.err, HasSubstr("finished already"));
    EXPECT_EQ(completions("out"), before);

    // Standard output gives the same lines.
    auto to_stdout = arguments("out");
    to_stdout.erase(to_stdout.begin() + 5, to_stdout.begin() + 7);
    EXPECT_EQ(ferry(to_stdout).out, before);
}

TEST_F(GenerateTest, AnotherSeedIsRefused) {
    ASSERT_EQ(ferry(arguments("out")).exit_code, 0);
    auto other = arguments("out");
    other.insert(other.end(), {"--set", "sampling.seed=5"});
    expect_error(ferry(other), 2, "sampling.seed: 0 before, 5 now");
    auto faster = arguments("out");
    faster.insert(faster.end(), {"--set", "engine.max_batch=3"});
    EXPECT_EQ(ferry(faster).exit_code, 0);
    write_file(dir_ / "in.jsonl", "{\"prompt\": \"other\"}\n");
    expect_error(ferry(arguments("out")), 2, "input: ");
}

TEST_F(GenerateTest, BadLinesAreReportedAndSurvived) {
    write_file(dir_ / "in.jsonl",
               "{\"prompt\": \"a\"}\nnonsense\n\n{\"id\": 7, \"prompt\": 5}\n{\"prompt\": \"b\", "
               "\"max_tokens\": 100000000}\n{\"prompt\": \"c\"}\n");
    const ProcessResult result = ferry(arguments("out"));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("in.jsonl:2: not valid JSON"));
    const std::string too_long = "in.jsonl:5: 2 prompt tokens and max_tokens 100000000 exceed";
    EXPECT_THAT(result.err, HasSubstr(too_long));
    std::istringstream lines(completions("out"));
    std::vector<std::string> reasons;
    for (std::string line; std::getline(lines, line);) {
        const auto json = nlohmann::json::parse(line);
        reasons.push_back(json["finish_reason"]);
        if (json["id"] == 5) EXPECT_THAT(json["error"], HasSubstr(too_long));
    }
    EXPECT_THAT(reasons, ::testing::ElementsAre("length", "error", "error", "error", "length"));
}

TEST_F(GenerateTest, SignalsStopItWith75AndTheNextRunGoesOn) {
    ASSERT_EQ(ferry(arguments("undisturbed", 50)).exit_code, 0);
    auto slow = arguments("out", 50);
    slow.insert(slow.end(), {"--set", "engine.max_batch=2"});
    const std::string part = dir_ / "out/part-00000.jsonl";
    for (const int signal : {SIGTERM, SIGUSR1, SIGHUP}) {
        const ProcessResult stopped =
            ferry(slow, {.send_signal = signal, .signal_when_grown = part, .before_start = [] {
                             ::signal(SIGHUP, SIG_DFL);
                         }});
        expect_error(stopped, 75, "run again to go on");
        EXPECT_FALSE(std::filesystem::exists(dir_ / "out/completions.jsonl"));
    }
    // As nohup starts it.
    const ProcessResult last =
        ferry(slow, {.send_signal = SIGHUP, .signal_when_grown = part, .before_start = [] {
                         ::signal(SIGHUP, SIG_IGN);
                     }});
    EXPECT_EQ(last.exit_code, 0) << last.err;
    EXPECT_THAT(last.err, HasSubstr("are done already"));
    EXPECT_EQ(completions("out"), completions("undisturbed"));
}

// What nobody can read is no failure; what was asked for is kept.
TEST_F(GenerateTest, AFullStandardErrorEndsNothing) {
    const ProcessOptions full{.before_start = [] {
        if (::dup2(::open("/dev/full", O_WRONLY), STDERR_FILENO) < 0) ::_exit(126);
    }};
    const ProcessOptions closed{.before_start = [] { ::close(STDERR_FILENO); }};
    EXPECT_EQ(ferry(arguments("full"), full).exit_code, 0);
    EXPECT_NE(completions("full"), "");
    EXPECT_EQ(ferry(arguments("full"), full).exit_code, 0);  // is finished already
    EXPECT_EQ(ferry(arguments("closed"), closed).exit_code, 0);
    EXPECT_EQ(completions("closed"), completions("full"));
}

TEST(Generate, AClosedStandardInputCannotBeRead) {
    const ProcessOptions closed{.before_start = [] { ::close(STDIN_FILENO); }};
    expect_error(ferry({"generate", "--model", kDemo, "--input", "-"}, closed), 4,
                 "standard input: cannot be read: Bad file descriptor");
}

TEST(Generate, PromptsGiveReadableText) {
    const ProcessResult result = ferry({"generate", "--model", kDemo, "--prompt", "It is a truth",
                                        "--prompt", "Elizabeth", "--set", "sampling.max_tokens=8"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, StartsWith("It is a truth"));
    EXPECT_THAT(result.out, HasSubstr("\n\nElizabeth"));
}

TEST(Generate, MinTokensHoldStopStringsBack) {
    const auto generate = [](const std::string& min_tokens) {
        return ferry({"generate", "--model", kDemo, "--prompt", "It is a truth", "--set",
                      "sampling.max_tokens=40", "--set", "sampling.stop=[e]", "--set",
                      "sampling.min_tokens=" + min_tokens});
    };
    const ProcessResult at_once = generate("0"), late = generate("20");
    EXPECT_EQ(at_once.exit_code, 0) << at_once.err;
    EXPECT_EQ(late.exit_code, 0) << late.err;
    EXPECT_EQ(at_once.out.find('e'), std::string::npos) << at_once.out;
    EXPECT_NE(late.out.find('e'), std::string::npos) << late.out;
    EXPECT_GT(late.out.size(), at_once.out.size() + 20);
}

// What a pipe says is answered before it says more, and a signal ends the wait.
TEST(Generate, OneRankNeedsNoEnvironment) {
    const ProcessResult result =
        run_process({"/usr/bin/env", "-i", FERRY_BINARY, "generate", "--model", kDemo, "--prompt",
                     "It is a truth", "--set", "sampling.max_tokens=8"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(Generate, ASilentPipeKeepsNothingWaiting) {
    const TempDir dir;
    const std::string pipe = dir / "requests";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    const int fd = ::open(pipe.c_str(), O_RDWR | O_CLOEXEC);
    const std::string line = "{\"prompt\": \"It is\", \"max_tokens\": 2}\n{\"prompt\": ";
    ASSERT_EQ(::write(fd, line.data(), line.size()), static_cast<ssize_t>(line.size()));
    const std::vector<std::string> command{"generate", "--model", kDemo, "--input", pipe};
    for (const int signal : {SIGTERM, SIGINT}) {
        const ProcessResult result = ferry(command, {.send_signal = signal, .signal_after_s = 3});
        expect_error(result, 75, "stopped early");
        if (signal == SIGTERM) {
            EXPECT_THAT(result.out, HasSubstr("\"finish_reason\": \"length\""));
        }
    }
    ::close(fd);
    std::vector<std::string> resumable = command;
    resumable.insert(resumable.end(), {"--output", dir / "out"});
    expect_error(ferry(resumable), 2, "cannot be read again");
}

TEST(Generate, OptionsTakeOneValueEachTime) {
    const TempDir dir;
    write_file(dir / "run.yaml", "sampling: {max_tokens: 2}\ninput: {prompt: [left out]}\n");
    const ProcessResult result = ferry({"generate", "--model", kDemo, "--set", "sampling.seed=2",
                                        "--prompt", "It is a truth", dir / "run.yaml"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, StartsWith("It is a truth"));
    EXPECT_EQ(result.out.find("run.yaml"), std::string::npos);
    EXPECT_LT(result.out.size(), 60u);
}

TEST(Generate, TwoModelsAreOneTooMany) {
    expect_error(
        ferry({"generate", "--model", kDemo, "--prompt", "x", "--set", "model.path=other"}), 2,
        "give one of them");
    expect_error(ferry({"bench", "throughput", "--model", kDemo, "--shape", "some.yaml"}), 2,
                 "give one of them");
    const TempDir dir;
    write_file(dir / "dummy.yaml", "model: {dummy: shape.yaml, layers: 2}\n");
    EXPECT_EQ(ferry({"generate", "--model", kDemo, "--prompt", "x", "--set",
                     "sampling.max_tokens=1", dir / "dummy.yaml"})
                  .exit_code,
              0);
}

TEST(Generate, ModelsThatCannotBeReachedSayWhy) {
    const TempDir dir;
    write_file(dir / "dense-00000.h5.partial", "x");
    expect_error(ferry({"inspect", dir.path()}), 3, "a conversion that is not finished");
    std::filesystem::create_symlink(dir / "loop", dir / "loop");
    for (const char* command : {"inspect", "top"})
        expect_error(ferry({command, dir / "loop"}), std::string(command) == "top" ? 4 : 3,
                     "Too many levels of symbolic links");
    expect_error(ferry({"generate", "--prompt", "x", "--model", std::string(300, 'm')}), 3,
                 "File name too long");
}

TEST(Generate, DraftsAreToldOfAndNeedAModuleWhereOneIsAskedFor) {
    const auto run = [](const std::string& drafter, const std::string& model = kDemo) {
        const bool drafts = !drafter.empty();
        return ferry({"generate", "--model", model, "--prompt",
                      "It is a truth universally acknowledged, that", "--set",
                      "sampling.max_tokens=150", "--set",
                      "engine.draft_tokens=" + std::string(drafts ? "2" : "0"), "--set",
                      "engine.drafter=" + (drafts ? drafter : "prompt_lookup")});
    };
    const ProcessResult plain = run("");
    EXPECT_EQ(plain.err.find("draft"), std::string::npos);
    for (const std::string drafter : {"prompt_lookup", "mtp"}) {
        const ProcessResult drafted = run(drafter);
        EXPECT_EQ(drafted.exit_code, 0) << drafted.err;
        EXPECT_EQ(drafted.out, plain.out);
        // The demo's module is right more often than not.
        EXPECT_THAT(drafted.err,
                    ::testing::ContainsRegex(drafter == "mtp" ? "a request got [2-3]\\.[0-9]+ tok"
                                                              : "drafts were computed, "));
    }
    const std::string other = std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/v2";
    expect_error(run("mtp", other), 2,
                 "engine.drafter: mtp, but " + other + " has no multi-token-prediction module");
}

TEST(Generate, ACacheBeyondTheMachineIsRefused) {
    expect_error(ferry({"generate", "--model", kDemo, "--prompt", "x", "--set",
                        "engine.cache_pages=1000000000"}),
                 6, "engine.cache_pages), this machine has");
}

TEST(Generate, WeightsBeyondTheMachineAreRefusedBeforeTheyAreLoaded) {
    constexpr int64_t kWeightsBytes = int64_t{400} << 30;
    if (::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE) >= kWeightsBytes)
        GTEST_SKIP() << "this machine could hold DeepSeek-V3";
    const std::string shape = std::string(FERRY_SOURCE_DIR) + "/configs/models/deepseek-v3.yaml";
    expect_error(ferry({"generate", "--set", "model.dummy=" + shape, "--set",
                        "model.tokenizer=" + kDemo + "/tokenizer.json", "--prompt", "x"}),
                 6, "for this job, its ranks' weights take at least");
}

TEST(Generate, MessagesThatMayNotHoldAStepAreToldBeforeTheyEndTheRun) {
    const ProcessResult result =
        ferry({"generate", "--model", kDemo, "--prompt", "The evening was", "--set",
               "exchange.mode=bounded", "--set", "exchange.bounded_tokens=1"});
    expect_error(result, 2, "raise exchange.bounded_tokens (1)");
    EXPECT_THAT(result.err, HasSubstr("a message holds 1 tokens, and a step may send 512 to one"));
}

TEST(Generate, InteractiveAnswersAndLeaves) {
    const ProcessResult result =
        ferry({"generate", "--model", kDemo, "--interactive", "--set", "sampling.max_tokens=5"},
              {.input = "Good morning\n/clear\n/exit\nnever read\n"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("/exit"));
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '>'), 3);
    for (const char* option : {"--prompt", "--input", "--output"})
        expect_error(ferry({"generate", "--model", kDemo, "--interactive", option, "x"}), 2,
                     "leave --prompt, --input and --output out");
}

}  // namespace
}  // namespace ferry
