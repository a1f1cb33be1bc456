// The executable as users meet it: exit codes, messages, files.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
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
using ::testing::StartsWith;
using testing::TempDir;
using testing::write_file;

TEST(Cli, VersionNamesEveryLibrary) {
    const ProcessResult result = ferry({"--version"});
    EXPECT_EQ(result.exit_code, 0);
    for (const char* name : {"ferry 0.", "HDF5", "yaml-cpp", "fmt", "spdlog", "Highway", "AMX",
                             "Oniguruma", "xxHash", "MPI", "UCX", "CUDA", "NCCL"})
        EXPECT_THAT(result.out, HasSubstr(name));
    std::istringstream lines(result.out);
    for (std::string line; std::getline(lines, line);)
        EXPECT_TRUE(line.find_first_of("0123456789") != std::string::npos ||
                    line.find("not built in") != std::string::npos)
            << line;
}

TEST(Cli, ReportWritesAPage) {
    const TempDir dir;
    write_file(dir / "load.json", "{\"first_layer\": 1, \"rows\": [[3, 1], [2, 2]]}");
    const ProcessResult result =
        ferry({"report", dir / "load.json", "-o", dir / "r.html", "--markdown", dir / "r.md"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(read_file(dir / "r.html"), HasSubstr("<figure id=\"expert-load-load\""));
    EXPECT_THAT(read_file(dir / "r.md"), HasSubstr("## Expert load"));
    EXPECT_THAT(ferry({"report", dir / "load.json", "--markdown", "-"}).out,
                StartsWith("# Ferry report"));

    expect_error(ferry({"report"}), 2, "RESULTS");
    const ProcessOptions two_tasks{.environment = {"OMPI_COMM_WORLD_SIZE=2"}};
    expect_error(ferry({"report", dir / "load.json", "-o", dir / "of_two.html"}, two_tasks), 2,
                 "report: runs on one rank, the launcher started 2");
    EXPECT_FALSE(std::filesystem::exists(dir / "of_two.html"));
    expect_error(ferry({"inspect", dir.path()}, two_tasks), 2, "inspect: runs on one rank");
    expect_error(ferry({"config"}, two_tasks), 2, "config: runs on one rank");
    expect_error(ferry({"report", dir / "no.json"}), 4, "no.json");
    expect_error(ferry({"report", dir / "load.json", "-o", dir / "no/r.html"}), 4, "no/r.html");
    expect_error(ferry({"report", dir / "load.json", "-o", dir / "load.json"}), 2,
                 "would be overwritten");
    expect_error(ferry({"report", dir / "load.json", "--baseline", dir / "load.json"}), 2,
                 "no result of a benchmark");
    write_file(dir / "torn.json", "{\"benchmark\": \"exchange\", \"rows\": [");
    expect_error(ferry({"report", dir / "torn.json"}), 4, "torn.json: not valid JSON");
}

TEST(Cli, InspectListsAndVerifies) {
    const TempDir dir;
    const std::string folder = dir / "checkpoint";
    ASSERT_EQ(ferry({"convert", kDemo, folder, "--expert-shards", "1"}).exit_code, 0);
    EXPECT_THAT(ferry({"inspect", folder}).out, HasSubstr("layers/N/ffn/shared/w3"));
    EXPECT_THAT(ferry({"inspect", folder, "--all"}).out, HasSubstr("layers/4/ffn/shared/w3"));
    EXPECT_THAT(ferry({"inspect", folder, "--verify"}).out, HasSubstr("all checksums are right"));
    expect_error(ferry({"inspect", kDemo, "--verify"}), 2,
                 "Hugging Face safetensors folder has no");
    const std::string shard = folder + "/experts-00000-of-00001.h5";
    std::fstream(shard, std::ios::in | std::ios::out | std::ios::binary)
        .seekp(100000)  // in the first of its tensors
        .write("\377\376\375", 3);
    const ProcessResult result = ferry({"inspect", folder, "--verify"});
    expect_error(result, 3, "fails its checksum");
    EXPECT_THAT(result.err, HasSubstr("layers/"));
}

TEST(Cli, UsageErrors) {
    expect_error(ferry({}), 2, "ferry needs a command: bench, config, convert");
    expect_error(ferry({"genrate"}), 2, "no command genrate; did you mean generate?");
    expect_error(ferry({"bench", "laod"}), 2,
                 "ferry bench has no command laod; did you mean load? (see ferry bench --help)");
    expect_error(ferry({"generate", "--modle=x"}), 2,
                 "ferry generate has no option --modle; did you mean --model? (see ferry generate");
    expect_error(ferry({"generate", "--colour"}), 2, "--colour");
    expect_error(ferry({"bench", "throughput", "--requests", "0"}), 2,
                 "--requests: must be more than 0; is 0");
    expect_error(ferry({"inspect", "x", "--threads", "many"}), 2,
                 "--threads: must be 1 .. 1024; is many");
    expect_error(ferry({"generate", "--config", "a.yaml"}), 2,
                 "ferry generate takes its configuration without an option: ferry generate "
                 "FILE.yaml");
    expect_error(ferry({"--verison"}), 2, "ferry has no option --verison; did you mean --version?");
    EXPECT_EQ(ferry({"--help"}).exit_code, 0);
    EXPECT_THAT(ferry({"--help"}).out, HasSubstr("generate"));
}

// Before the work, where the end of it would find out.
TEST(Cli, FilesThatCannotBeWrittenAreToldAtTheStart) {
    const std::vector<std::string> generate{
        "generate", "--model", kDemo, "--prompt", "x", "--set", "model.tokenizer=none"};
    for (const std::string file : {"log.trace", "log.expert_load", "log.routing"}) {
        std::vector<std::string> arguments = generate;
        arguments.insert(arguments.end(), {"--set", file + "=/proc/none/file"});
        expect_error(ferry(arguments), 4, "/proc/none/file: cannot be written");
    }
    for (const std::string command : {"throughput", "load", "layer", "scaling"})
        expect_error(ferry({"bench", command, "--model", "/nowhere", "--json", "/proc/none/file"}),
                     4, "/proc/none/file: cannot be written");
    const TempDir dir;
    write_file(dir / "there.json", "as it was");
    expect_error(ferry({"bench", "load", "--model", "/nowhere", "--json", dir / "there.json",
                        "--csv", dir / "new.csv"}),
                 3, "/nowhere");
    EXPECT_EQ(read_file(dir / "there.json"), "as it was");
    EXPECT_FALSE(std::filesystem::exists(dir / "new.csv"));
}

TEST(Cli, FullStandardOutputIsNoSuccess) {
    const ProcessOptions full{.before_start = [] {
        if (::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO) < 0) ::_exit(126);
    }};
    const std::string told = "standard output: cannot be written: No space left on device";
    expect_error(ferry({"config"}, full), 4, told);
    expect_error(ferry({"--help"}, full), 4, told);
    expect_error(ferry({"inspect", kDemo}, full), 4, told);
    const ProcessResult generated = ferry({"generate", "--model", kDemo, "--prompt", "x", "--set",
                                           "sampling.max_tokens=2", "--set", "log.progress=off"},
                                          full);
    EXPECT_EQ(generated.exit_code, 4);
    EXPECT_THAT(generated.err, HasSubstr(told));
}

TEST(Cli, ConfigPrintsWhatItReadsBack) {
    const TempDir dir;
    const ProcessResult first =
        ferry({"config", "--set", "engine.threads=2", "--set", "sampling.stop=[a, b]"});
    EXPECT_EQ(first.exit_code, 0) << first.err;
    EXPECT_THAT(first.out, HasSubstr("engine:\n  device: cpu\n  threads: 2\n"));
    write_file(dir / "effective.yaml", first.out);
    EXPECT_EQ(ferry({"config", dir / "effective.yaml"}).out, first.out);
}

TEST(Cli, ConfigHelpListsEveryField) {
    const ProcessResult result = ferry({"config", "--help"});
    EXPECT_EQ(result.exit_code, 0);
    for (const char* name : {"max_batch_tokens", "temperature", "redundant_experts"})
        EXPECT_THAT(result.out, HasSubstr(name));
}

TEST(Cli, ConfigErrorsNameTheLine) {
    const TempDir dir;
    write_file(dir / "demo.yaml", "model:\n  path: x\nlayout:\n  expert_rank: 4\n");
    expect_error(ferry({"config", dir / "demo.yaml"}), 2,
                 "demo.yaml:4: layout.expert_rank: no such key; did you mean "
                 "layout.expert_ranks?");
    expect_error(ferry({"config", "--set", "engine.threads=x"}), 2, "--set: engine.threads:");
    expect_error(ferry({"config", dir / "none.yaml"}), 2, "none.yaml");
}

TEST(Cli, GenerateSaysWhatIsMissing) {
    expect_error(ferry({"generate", "--prompt", "x"}), 2, "no model");
    expect_error(ferry({"generate", "--model", kDemo}), 2, "nothing to do");
    expect_error(ferry({"generate", "--model", "/nowhere", "--prompt", "x"}), 3, "/nowhere");
    for (const char* setting :
         {"layout.placement=/nowhere.json", "model.chat_template=/nowhere.json",
          "log.file=/proc/none/nowhere.json"})
        expect_error(ferry({"generate", "--model", kDemo, "--prompt", "x", "--set", setting}), 4,
                     "nowhere.json");
    expect_error(ferry({"generate", "--model", kDemo, "--input", "/no.jsonl"}), 4, "/no.jsonl");
    expect_error(ferry({"generate", "--model", kDemo, "--prompt", "x", "--input", "y"}), 2,
                 "input.prompt");
    const std::vector<std::string> alone[] = {{"--prompt", "input.file=a.jsonl"},
                                              {"--prompt", "input.prompt=x"},
                                              {"--input", "input.prompt=x"},
                                              {"--output", "output.dir=there"}};
    for (const auto& each : alone)
        expect_error(ferry({"generate", "--model", kDemo, each[0], "y", "--set", each[1]}), 2,
                     "--set \"" + each[1] + "\": " + each[0]);
    expect_error(ferry({"generate", "--model", kDemo, "--interactive", "--set", "input.prompt=x"}),
                 2, "--interactive");
    expect_error(
        ferry({"generate", "--model", kDemo, "--prompt", "x", "--set", "layout.attention_ranks=2"}),
        2, "attention_ranks is 2");
    const ProcessOptions bad_timeout{.environment = {"FERRY_START_TIMEOUT_S=abc"}};
    for (const std::string command : {"generate", "doctor"})
        expect_error(ferry({command}, bad_timeout), 2,
                     "FERRY_START_TIMEOUT_S: must be a whole number of seconds");
    const ProcessOptions two_tasks{.environment = {"OMPI_COMM_WORLD_SIZE=2"}};
    expect_error(ferry({"generate", "--model", kDemo, "--prompt", "x"}, two_tasks), 2,
                 "the launcher started 2 tasks");
}

// File by file.
std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> files;
    if (std::filesystem::exists(folder))
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            files[entry.path().filename()] = read_file(entry.path());
    return files;
}

class ConvertTest : public ::testing::Test {
  protected:
    ProcessResult convert(const ProcessOptions& options = {}) const {
        return ferry({"convert", hf_, out_, "--expert-shards", "4"}, options);
    }
    void copy_demo() {
        hf_ = dir_ / "hf";
        std::filesystem::copy(kDemo, hf_);
    }

    TempDir dir_;
    std::string hf_ = kDemo, out_ = dir_ / "out";
};

TEST_F(ConvertTest, BrokenInputEndsWith3AndLeavesNothing) {
    copy_demo();
    const std::string file = hf_ + "/model-00002-of-00003.safetensors";
    const std::string whole = read_file(file);
    // Every refusal names the file and, where there is one, the tensor.
    const auto refused = [&](const std::string& bytes, const std::string& part,
                             const std::string& tensor = "tensor \"model.layers.") {
        write_file(file, bytes);
        const ProcessResult result = convert();
        expect_error(result, 3, part);
        EXPECT_THAT(result.err, HasSubstr("model-00002-of-00003.safetensors"));
        EXPECT_THAT(result.err, HasSubstr(tensor));
        EXPECT_TRUE(contents(out_).empty());
    };
    refused(whole.substr(0, 1'000'000), "truncated file");
    refused(whole.substr(0, 500), "truncated", "");
    refused("\xff\xff\xff\xff\xff\xff\xff\x7f" + whole.substr(8), "wrong header length", "");
    for (const char length : {'\x08', '\xff'})  // too short, too long
        refused(std::string(1, length) + whole.substr(1), "wrong header length", "");
    const auto edited = [&](const std::string& from, const std::string& to) {
        std::string bytes = whole;
        return bytes.replace(bytes.find(from), from.size(), to);
    };
    refused(edited("\"BF16\"", "\"BF15\""), "unknown dtype \"BF15\"");
    refused(edited("\"shape\":[32]", "\"shape\":[31]"), "does not fit its");
    refused(edited("model.layers.", "model.layerz."), "is missing", "tensor model.layers.");
    refused(edited("[128,256]", "[64,192] "), "overlaps tensor");
    refused(edited("\"data_offsets\":[0,", "\"data_offsets\":[4,"), "does not fit its");
    write_file(file, whole);
    EXPECT_EQ(convert().exit_code, 0);
}

TEST_F(ConvertTest, OtherModelsEndWith3AndMisspellingsAreTold) {
    EXPECT_THAT(convert().err, Not(HasSubstr("warn")));
    copy_demo();
    const std::string config = read_file(hf_ + "/config.json");
    const auto results_of_edited = [&](const std::string& from, const std::string& to) {
        write_file(hf_ + "/config.json",
                   std::string(config).replace(config.find(from), from.size(), to));
        std::filesystem::remove_all(out_);
        return std::vector{
            convert(), ferry({"inspect", hf_}),
            ferry({"generate", "--model", hf_, "--prompt", "x", "--set", "sampling.max_tokens=1"})};
    };
    for (const ProcessResult& result : results_of_edited("deepseek_v3", "deepseek_v4"))
        expect_error(result, 3, hf_ + "/config.json: model_type \"deepseek_v4\" is not supported");
    EXPECT_TRUE(contents(out_).empty());
    for (const ProcessResult& result : results_of_edited("rope_scaling", "rope_scalin")) {
        EXPECT_EQ(result.exit_code, 0) << result.err;
        EXPECT_THAT(result.err, HasSubstr("warning] " + hf_ + "/config.json: \"rope_scalin\": no"));
    }
}

TEST_F(ConvertTest, KilledAtAnyMomentAndRestarted) {
    const auto start = std::chrono::steady_clock::now();
    ASSERT_EQ(convert().exit_code, 0);
    const std::chrono::duration<double> duration = std::chrono::steady_clock::now() - start;
    const auto undisturbed = contents(out_);
    std::filesystem::remove_all(out_);
    constexpr int kRounds = 16;
    int num_killed = 0;
    for (int round = 0; round < kRounds; ++round) {
        if (round % 4 == 0) std::filesystem::remove_all(out_);
        const ProcessResult result =
            convert({.send_signal = SIGKILL,
                     .signal_after_s = duration.count() * (0.3 + 0.7 * round / kRounds)});
        num_killed += result.signal == SIGKILL ? 1 : 0;
        for (const auto& [name, bytes] : contents(out_)) {
            // What has its final name is whole.
            if (!name.ends_with(".partial")) EXPECT_TRUE(bytes == undisturbed.at(name)) << name;
        }
        if (!std::filesystem::exists(out_ + "/model.h5"))
            expect_error(ferry({"inspect", out_}), 3, out_);
    }
    EXPECT_GT(num_killed, 0);
    const ProcessResult last = convert();
    EXPECT_EQ(last.exit_code, 0) << last.err;
    EXPECT_TRUE(contents(out_) == undisturbed);  // no .partial is left either
}

TEST_F(ConvertTest, FullDiskEndsWith3AndTheNextRunGoesOn) {
    const ProcessResult full = testing::run_process(
        {"/bin/sh", "-c", "ulimit -f 3000; exec \"$0\" convert \"$1\" \"$2\" --expert-shards 4",
         FERRY_BINARY, kDemo, out_});
    expect_error(full, 3, "disk full");
    EXPECT_THAT(full.err, HasSubstr(".h5"));
    EXPECT_THAT(full.err, HasSubstr("(tensor "));
    for (const auto& [name, bytes] : contents(out_)) EXPECT_NE(name, "model.h5");
    expect_error(ferry({"inspect", out_}), 3, out_);
    EXPECT_EQ(convert().exit_code, 0);
    EXPECT_EQ(ferry({"inspect", out_}).exit_code, 0);
}

TEST(Bench, LayerMeasuresAndComparesBits) {
    const TempDir dir;
    const std::string shape = std::string(FERRY_SOURCE_DIR) + "/tests/launch/tiny_model.yaml";
    const ProcessResult result =
        ferry({"bench", "layer", "--shape", shape, "--decode", "1,5", "--context", "70",
               "--prefill", "100", "--repetitions", "2", "--set", "engine.threads=2", "--set",
               "engine.compress_weights=false", "--json", dir / "out.json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("decode 5 at 70"));
    const auto json = nlohmann::json::parse(read_file(dir / "out.json"));
    EXPECT_EQ(json["parameters"]["threads"], 2);
    std::map<std::string, std::map<std::string, nlohmann::json>> rows;
    for (const auto& row : json["rows"]) rows[row["workload"]][row["stage"]] = row;
    for (const char* step : {"decode 1 at 70", "decode 5 at 70", "prefill 100"}) {
        for (const char* stage :
             {"attention", "dense", "gate", "shared", "experts", "head", "step"})
            EXPECT_GT(rows[step][stage]["best_us"], 0) << step << " " << stage;
        EXPECT_EQ(rows[step]["step"]["check"], "same");
        EXPECT_GT(rows[step]["step"]["of_bound"], 0);
    }
    // By hand: 5 rows times 2 FLOPs times [64, 256] of the head; 2 of 8 experts, 3 x [64, 32] bf16.
    EXPECT_EQ(rows["decode 5 at 70"]["head"]["flops"], 5 * 2 * 64 * 256);
    EXPECT_EQ(rows["decode 1 at 70"]["experts"]["bytes"], 2 * 3 * 64 * 32 * 2);
    EXPECT_EQ(rows["prefill 100"]["experts"]["flops"], 100 * 2 * 2 * 3 * 64 * 32);
    EXPECT_EQ(ferry({"bench", "layer", "--shape", shape, "--decode", "2", "--prefill", "0",
                     "--repetitions", "1", "--set", "model.layers=1"})
                  .exit_code,
              0);
    expect_error(ferry({"bench"}), 2, "ferry bench needs a command: exchange, layer, load");
    expect_error(ferry({"bench", "layer", "--shape", shape, "--prefill", "20000"}), 2,
                 "16384 positions");
}

TEST(Bench, LayerTimesTheSharesOfVirtualExpertRanks) {
    const TempDir dir;
    const std::string shape = std::string(FERRY_SOURCE_DIR) + "/tests/launch/tiny_model.yaml";
    const std::vector<std::string> command{"bench",         "layer",
                                           "--shape",       shape,
                                           "--decode",      "40",
                                           "--context",     "10",
                                           "--prefill",     "0",
                                           "--repetitions", "2",
                                           "--set",         "engine.compress_weights=false"};
    auto arguments = command;
    arguments.insert(arguments.end(), {"--expert-ranks", "3", "--json", dir / "out.json"});
    const ProcessResult result = ferry(arguments);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(read_file(dir / "out.json"));
    const std::string name = "decode 40 at 10, 1 of 3 expert ranks";
    EXPECT_THAT(json["parameters"][name], HasSubstr("2 to 3 experts"));
    int num_rows = 0;
    for (const auto& row : json["rows"]) {
        if (row["workload"] != name) continue;
        ++num_rows;
        EXPECT_EQ(row["stage"], "experts");
        EXPECT_GT(row["best_us"], 0);
        EXPECT_EQ(row["check"], "same");
        // 120 tokens choose among 8 experts: all 3 of a rank, or both of the last, have rows.
        EXPECT_EQ(static_cast<int64_t>(row["bytes"]) % (3 * 64 * 32 * 2), 0);
        EXPECT_GE(row["bytes"], 2 * 3 * 64 * 32 * 2);
        EXPECT_LE(row["bytes"], 3 * 3 * 64 * 32 * 2);
    }
    EXPECT_EQ(num_rows, 1);
    arguments = command;
    arguments.insert(arguments.end(), {"--expert-ranks", "9"});
    expect_error(ferry(arguments), 2, "9 ranks cannot share the 8 experts");
}

TEST(Bench, ThroughputOfLengthsFromAFile) {
    const TempDir dir;
    write_file(dir / "lengths.jsonl",
               "{\"prompt_tokens\": 5, \"max_tokens\": 3}\n{\"input\": 9, \"output\": 2}\n");
    const std::vector<std::string> command{"bench",           "throughput",
                                           "--model",         kDemo,
                                           "--lengths",       dir / "lengths.jsonl",
                                           "--prefix-share",  "0.5",
                                           "--slo-tpot-ms",   "60000",
                                           "--micro-batches", "1,2",
                                           "--repetitions",   "1",
                                           "--json",          dir / "result.json"};
    const ProcessResult result = ferry(command);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(read_file(dir / "result.json"));
    EXPECT_EQ(json["workload"]["requests"], 2);
    EXPECT_EQ(json["workload"]["prefix_share"], 0.5);
    ASSERT_EQ(json["rows"].size(), 2u);
    for (const auto& row : json["rows"]) EXPECT_GT(row["goodput_requests_per_s"], 0) << row;
    EXPECT_EQ(
        ferry({"report", dir / "result.json", "--title", "A & B", "-o", dir / "r.html"}).exit_code,
        0);
    EXPECT_THAT(read_file(dir / "r.html"), HasSubstr("<title>A &amp; B</title>"));
    write_file(dir / "lengths.jsonl", "{\"prompt_tokens\": \"x\"}\n");
    expect_error(ferry(command), 4, "lengths.jsonl:1: prompt_tokens must be a number of tokens");
}

TEST(Bench, ExchangeOfOneRankBringsEveryElementBack) {
    const TempDir dir;
    const ProcessResult result =
        ferry({"bench", "exchange", "--tokens", "0,3", "--dim", "256", "--experts", "5", "--topk",
               "2", "--dtype", "f32,bf16,fp8", "--routing", "uniform,power,hot", "--repetitions",
               "2", "--json", dir / "out.json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(read_file(dir / "out.json"));
    ASSERT_EQ(json["rows"].size(), 18u);
    for (const auto& row : json["rows"]) {
        EXPECT_EQ(row["wrong"], 0) << row;
        EXPECT_GT(row["bytes"], 0) << row;  // headers travel without tokens too
        EXPECT_GE(row["both_us"], row["dispatch_us"]) << row;
    }
    EXPECT_EQ(json["parameters"]["ranks"], 1);
    for (const char* name : {"hosts", "versions", "environment"})
        EXPECT_TRUE(json["parameters"].contains(name)) << name;
    expect_error(ferry({"bench", "exchange", "--layout", "2:x"}), 2, "attention:expert");
    expect_error(ferry({"bench", "exchange", "--routing", "cold"}), 2, "--routing cold: neither");
    expect_error(ferry({"bench", "exchange", "--experts", "2", "--topk", "3"}), 2,
                 "top-3 of 2 experts");
    expect_error(ferry({"bench", "exchange", "--layout", "2:1"}), 2, "3 ranks");
    expect_error(ferry({"bench", "exchange", "--json", "no/such/folder.json"}), 4,
                 "no/such/folder.json: cannot be written");
}

TEST(Bench, ExchangeReplaysARecordedRouting) {
    const TempDir dir;
    ASSERT_EQ(ferry({"generate", "--model", kDemo, "--prompt", "It is", "--set",
                     "sampling.max_tokens=4", "--set", "log.routing=" + (dir / "routing.jsonl"),
                     "--set", "log.expert_load=" + (dir / "load.json")})
                  .exit_code,
              0);
    std::istringstream lines(read_file(dir / "routing.jsonl"));
    std::string first, second;
    std::getline(lines, first);
    std::getline(lines, second);
    const auto model = nlohmann::json::parse(first);
    const auto dispatch = nlohmann::json::parse(second);
    EXPECT_EQ(dispatch["attention_rank"], 0);
    EXPECT_EQ(dispatch["experts"][0].size(), model["top_k"].get<size_t>());
    const std::string topk = std::to_string(model["top_k"].get<int>());
    const ProcessResult result =
        ferry({"bench", "exchange", "--tokens", "3", "--dim", "256", "--topk", topk, "--routing",
               dir / "routing.jsonl" + std::string(",") + (dir / "load.json"), "--repetitions", "2",
               "--csv", "-"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("routing.jsonl bf16"));
    EXPECT_THAT(result.out, HasSubstr("load.json bf16"));
}

TEST(Bench, HasNoOptionsThatDoNothing) {
    expect_error(ferry({"bench", "load", "--shape", "x.yaml"}), 2,
                 "ferry bench load has no option --shape");
    expect_error(ferry({"bench", "scaling", "--slo-ttft-ms", "9"}), 2,
                 "ferry bench scaling has no option --slo-ttft-ms");
    expect_error(
        ferry({"bench", "layer", "--model", kDemo, "--set", "log.file=/proc/none/nowhere"}), 4,
        "log.file /proc/none/nowhere: cannot be opened");
}

TEST(Bench, NothingMeasuredIsAnError) {
    expect_error(ferry({"bench", "throughput", "--model", kDemo, "--layout", "2:2"}), 2,
                 "every layout needs more ranks than the 1 of this job");
}

}  // namespace
}  // namespace ferry
