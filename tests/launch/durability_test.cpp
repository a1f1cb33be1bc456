// `ferry generate` against everything that can happen to a run with an output folder: whatever
// comes, the final file is that of an undisturbed run.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/random.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::ProcessOptions;
using testing::ProcessResult;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

ProcessResult ferry(std::vector<std::string> arguments, const ProcessOptions& options = {}) {
    arguments.insert(arguments.begin(), FERRY_BINARY);
    return testing::run_process(arguments, options);
}

double seconds_of(const std::function<void()>& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Requests whose lines of a part are whole; fails on one that is there twice.
std::set<std::string> requests_of_part(const std::string& path) {
    std::set<std::string> ids;
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);) {
        const auto json = nlohmann::json::parse(line, nullptr, false);
        if (json.is_discarded()) continue;
        const std::string id = json["completion"]["id"].dump() + "/" + json["sample"].dump();
        EXPECT_TRUE(ids.insert(id).second) << id << " twice in " << path;
    }
    return ids;
}

// One conversion of the demo model and one undisturbed run serve all tests.
class Durability : public ::testing::Test {
  protected:
    struct Fixture {
        TempDir dir;
        double undisturbed_s = 0;
        std::string expected;
    };

    static void SetUpTestSuite() {
        shared_ = new Fixture;
        const TempDir& dir = shared_->dir;
        std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
        const std::string demo = std::string(FERRY_SOURCE_DIR) + "/configs/demo";
        ASSERT_EQ(ferry({"convert", demo, dir / "model"}).exit_code, 0);
        std::string lines;
        for (int i = 0; i < 60; ++i)  // of uneven lengths, every tenth with two samples
            lines += nlohmann::json{{"id", i},
                                    {"prompt", fmt::format("She said {}", i)},
                                    {"temperature", i % 2},
                                    {"max_tokens", 4 + i * 7 % 40},
                                    {"n", i % 10 == 9 ? 2 : 1},
                                    {"logprobs", 1}}
                         .dump() +
                     "\n";
        write_file(dir / "in.jsonl", lines);
        shared_->undisturbed_s =
            seconds_of([&] { ASSERT_EQ(ferry(arguments(dir / "undisturbed")).exit_code, 0); });
        shared_->expected = read_file(dir / "undisturbed/completions.jsonl");
        ASSERT_EQ(std::count(shared_->expected.begin(), shared_->expected.end(), '\n'), 66);
    }
    static void TearDownTestSuite() { delete shared_; }

    static std::vector<std::string> arguments(const std::string& out) {
        return {"generate",
                "--model",
                shared_->dir / "model",
                "--input",
                shared_->dir / "in.jsonl",
                "--output",
                out,
                "--set",
                "output.timings=false",
                "--set",
                "output.sync_interval_s=0.02",
                "--set",
                "engine.threads=1",
                "--set",
                "engine.max_batch=8"};
    }
    static ProcessResult run(const std::string& out, const ProcessOptions& options = {}) {
        return ferry(arguments(out), options);
    }
    static void expect_as_undisturbed(const std::string& out) {
        EXPECT_EQ(read_file(out + "/completions.jsonl"), shared_->expected);
        for (const auto& entry : std::filesystem::directory_iterator(out)) {
            const std::string name = entry.path().filename();
            EXPECT_THAT(name, AnyOf("completions.jsonl", "run.yaml", "status.json"));
        }
    }
    static void resume_and_expect_as_undisturbed(const std::string& out) {
        const ProcessResult result = run(out);
        EXPECT_EQ(result.exit_code, 0) << result.err;
        expect_as_undisturbed(out);
    }
    // Leaves an unfinished folder behind.
    static void interrupt_early(const std::string& out) {
        const ProcessResult result =
            run(out, {.send_signal = SIGKILL, .signal_when_grown = out + "/part-00000.jsonl"});
        ASSERT_EQ(result.signal, SIGKILL);
        ASSERT_FALSE(std::filesystem::exists(out + "/completions.jsonl"));
        ASSERT_GE(requests_of_part(out + "/part-00000.jsonl").size(), 1u);
    }

    static Fixture* shared_;
    TempDir dir_;
};
Durability::Fixture* Durability::shared_ = nullptr;

TEST_F(Durability, KilledFiftyTimesAtRandomMoments) {
    Random random(static_cast<uint64_t>(::getpid()));
    const std::string out = dir_ / "out", part = out + "/part-00000.jsonl";
    // Where the moment is counted from: the start, the next result, the merging of results.
    const std::string from[] = {"", "", part, out + "/completions.jsonl.tmp"};
    int num_killed = 0, num_finished = 0, num_while_merging = 0;
    std::set<std::string> before;
    for (int round = 0; num_killed < 50 && round < 400; ++round) {
        ProcessOptions options{.send_signal = SIGKILL,
                               .signal_when_grown = from[random.next_u32() % std::size(from)]};
        const double longest = options.signal_when_grown.empty() ? shared_->undisturbed_s : 0.02;
        options.signal_after_s = longest * random.next_uniform();
        const ProcessResult result = run(out, options);
        if (result.signal == SIGKILL) {
            ++num_killed;
            num_while_merging += std::filesystem::exists(from[3]) ? 1 : 0;
            const std::set<std::string> now = requests_of_part(part);
            const bool merged = std::filesystem::exists(out + "/completions.jsonl");
            EXPECT_TRUE(merged ||
                        std::includes(now.begin(), now.end(), before.begin(), before.end()))
                << "requests that were done are gone";
            before = now;
            continue;
        }
        ASSERT_EQ(result.exit_code, 0) << result.err;
        expect_as_undisturbed(out);
        std::filesystem::remove_all(out);
        before.clear();
        ++num_finished;
    }
    EXPECT_EQ(num_killed, 50);
    resume_and_expect_as_undisturbed(out);
    std::printf("%d kills, %d of them while merging; finished %d times in between\n", num_killed,
                num_while_merging, num_finished);
}

TEST_F(Durability, TornLastLine) {
    const std::string out = dir_ / "out", part = out + "/part-00000.jsonl";
    interrupt_early(out);
    const std::string whole = read_file(part);
    const size_t last_line = whole.rfind('\n', whole.size() - 2) + 1;
    for (const size_t size : {whole.size() - 1, last_line + 1, (last_line + whole.size()) / 2}) {
        std::filesystem::remove_all(out + "-torn");
        std::filesystem::copy(out, out + "-torn");
        write_file(out + "-torn/part-00000.jsonl", whole.substr(0, size));
        const ProcessResult result = run(out + "-torn");
        EXPECT_EQ(result.exit_code, 0) << result.err;
        EXPECT_THAT(result.err, HasSubstr("torn or damaged line dropped"));
        expect_as_undisturbed(out + "-torn");
    }
}

TEST_F(Durability, EditedConfigurationIsRefusedAndNothingIsTouched) {
    const std::string out = dir_ / "out", part = out + "/part-00000.jsonl";
    interrupt_early(out);
    const std::string before = read_file(part);
    const std::pair<const char*, const char*> edits[] = {
        {"sampling.temperature=0.5", "sampling.temperature: 0.0 before, 0.5 now"},
        {"numerics.cache_dtype=bf16", "numerics.cache_dtype: f32 before, bf16 now"},
        {"exchange.dtype=bf16", "exchange.dtype: f32 before, bf16 now"},
    };
    for (const auto& [edit, message] : edits) {
        auto edited = arguments(out);
        edited.insert(edited.end(), {"--set", edit});
        const ProcessResult result = ferry(edited);
        EXPECT_EQ(result.exit_code, 2) << result.err;
        EXPECT_THAT(result.err, HasSubstr(message));
        EXPECT_EQ(read_file(part), before);
    }
    // What changes no result is no edit.
    auto faster = arguments(out);
    faster.insert(faster.end(), {"--set", "engine.threads=2", "--set", "engine.max_batch=3",
                                 "--set", "engine.prefix_cache=false"});
    EXPECT_EQ(ferry(faster).exit_code, 0);
    expect_as_undisturbed(out);
}

// In a child: files beyond this size fail as on a full disk (EFBIG instead of ENOSPC).
void limit_file_size(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
}

TEST_F(Durability, FilesThatMayNotGrow) {
    const std::string out = dir_ / "out";
    for (const rlim_t limit : {2000, 6000, 20000}) {
        // Open MPI is to keep what it shares with its daemon out of files.
        const ProcessResult result =
            run(out, {.environment = {"PMIX_MCA_gds=hash"},
                      .before_start = [limit] { limit_file_size(limit); }});
        EXPECT_EQ(result.exit_code, 4) << result.err;
        EXPECT_THAT(result.err, HasSubstr("File too large"));
        EXPECT_FALSE(std::filesystem::exists(out + "/completions.jsonl"));
    }
    EXPECT_GT(requests_of_part(out + "/part-00000.jsonl").size(), 10u);
    resume_and_expect_as_undisturbed(out);
}

// A file system of `size` on `folder`, in a mount namespace of this process; gone at the end.
class SmallDisk {
  public:
    SmallDisk(const std::string& folder, const std::string& size) : folder_(folder) {
        std::filesystem::create_directories(folder);
        mounted_ = ::unshare(CLONE_NEWNS) == 0 &&
                   ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                   ::mount("ferry", folder.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
    }
    ~SmallDisk() {
        if (mounted_) ::umount(folder_.c_str());
    }
    bool mounted() const { return mounted_; }
    void remount(unsigned long flags, const std::string& size) const {
        ASSERT_EQ(::mount("ferry", folder_.c_str(), "tmpfs", MS_REMOUNT | flags,
                          ("size=" + size).c_str()),
                  0);
    }

  private:
    std::string folder_;
    bool mounted_;
};

TEST_F(Durability, FullDisk) {
    const std::string out = dir_ / "out";
    const SmallDisk disk(out, "16k");
    if (!disk.mounted()) GTEST_SKIP() << "may not mount; FilesThatMayNotGrow stands in";
    for (const char* size : {"16k", "36k"}) {
        disk.remount(0, size);
        const ProcessResult result = run(out);
        EXPECT_EQ(result.exit_code, 4) << result.err;
        EXPECT_THAT(result.err, HasSubstr("No space left on device"));
        EXPECT_THAT(result.err, HasSubstr("finished requests are kept, run again to go on"));
        EXPECT_GE(requests_of_part(out + "/part-00000.jsonl").size(), 1u);
    }
    disk.remount(0, "1m");
    resume_and_expect_as_undisturbed(out);
}

TEST_F(Durability, DiskThatFillsUpWhenResultsAreMerged) {
    const std::string out = dir_ / "out";
    const auto size = [&](const std::string& name) {
        return std::filesystem::file_size(out + "/" + name);
    };
    const SmallDisk disk(out, "1m");
    if (!disk.mounted()) GTEST_SKIP() << "may not mount; tests/runtime/journal_test.cpp stands in";
    const std::string blocker = out + "/completions.jsonl.tmp";
    std::filesystem::create_directory(blocker);
    EXPECT_THAT(run(out).err, HasSubstr("completions.jsonl.tmp: cannot be made: Is a directory"));
    std::filesystem::remove(blocker);
    // Room for the parts, not for the result beside them.
    disk.remount(0,
                 std::to_string((size("part-00000.jsonl") + size("run.yaml")) / 1024 + 12) + "k");
    const ProcessResult result = run(out);
    EXPECT_EQ(result.exit_code, 4) << result.err;
    EXPECT_THAT(result.err, HasSubstr("No space left on device; finished requests are kept, run "
                                      "again to go on"));
    EXPECT_FALSE(std::filesystem::exists(out + "/completions.jsonl"));
    EXPECT_EQ(requests_of_part(out + "/part-00000.jsonl").size(), 66u);
    disk.remount(0, "1m");
    resume_and_expect_as_undisturbed(out);
}

TEST_F(Durability, DiskThatBecameReadOnly) {
    const std::string out = dir_ / "out";
    const SmallDisk disk(out, "1m");
    if (!disk.mounted()) GTEST_SKIP() << "may not mount; FolderWithoutPermission stands in";
    disk.remount(MS_RDONLY, "1m");
    EXPECT_THAT(run(out).err, HasSubstr("Read-only file system"));
    disk.remount(0, "1m");
    interrupt_early(out);
    disk.remount(MS_RDONLY, "1m");
    const ProcessResult result = run(out);
    EXPECT_EQ(result.exit_code, 4) << result.err;
    EXPECT_THAT(result.err, HasSubstr("part-00000.jsonl: cannot be opened: Read-only file system"));
    disk.remount(0, "1m");
    resume_and_expect_as_undisturbed(out);
}

TEST_F(Durability, FolderWithoutPermission) {
    using std::filesystem::perms;
    std::filesystem::permissions(dir_.path(), perms(0755));
    const std::string out = dir_ / "out";
    std::filesystem::create_directory(out);
    std::filesystem::permissions(out, perms(0555));
    // Root may write everywhere: become nobody.
    const ProcessOptions as_nobody{.before_start = [] {
        if (::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0)) ::_exit(126);
    }};
    ProcessResult result = run(out, as_nobody);
    if (result.exit_code == 126) GTEST_SKIP() << "root may not become nobody here";
    EXPECT_EQ(result.exit_code, 4) << result.err;
    EXPECT_THAT(result.err, HasSubstr(".tmp: cannot be made: Permission denied"));
    std::filesystem::permissions(out, perms(0777));
    EXPECT_EQ(run(out, as_nobody).exit_code, 0);
    expect_as_undisturbed(out);
}

}  // namespace
}  // namespace ferry
