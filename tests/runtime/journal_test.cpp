#include "runtime/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/random.h"
#include "runtime/journal_files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::read_file;
using testing::TempDir;
using testing::write_file;

const char* const kDescription = "model:\n  dtype: auto\nsampling:\n  seed: 1\ninput_hash: ab\n";
constexpr Journal::Options kOptions{.sync_interval_s = 3600, .with_timings = false};

Completion completion_of(int64_t index, int64_t sample = 0, int64_t num_samples = 1) {
    Completion completion;
    completion.index = index;
    completion.sample = sample;
    completion.num_samples = num_samples;
    completion.id = {std::to_string(index), true};
    completion.text = "text of " + std::to_string(index) + "\n";
    completion.tokens = {static_cast<int32_t>(index), 7};
    completion.finish_reason = FinishReason::length;
    return completion;
}

std::string expected_lines(int64_t num) {
    std::string lines;
    for (int64_t i = 0; i < num; ++i) lines += to_json(completion_of(i), false) + "\n";
    return lines;
}

TEST(Journal, MergesPartsInInputOrder) {
    const TempDir dir;
    EXPECT_EQ(prepare_output(dir / "out", kDescription), OutputState::unfinished);
    {
        const Journal::Options sync_each{.sync_interval_s = 0, .with_timings = false};
        Journal first(dir / "out", 0, sync_each), second(dir / "out", 1, kOptions);
        for (int64_t i : {5, 0, 3}) first.append(completion_of(i));
        for (int64_t i : {4, 2, 1}) second.append(completion_of(i));
    }
    EXPECT_EQ(merge_output(dir / "out", 6), 6);
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(6));
    EXPECT_TRUE(list_parts(dir / "out").empty());
    EXPECT_EQ(prepare_output(dir / "out", kDescription), OutputState::finished);
}

TEST(Journal, SamplesOfALineStayInOrder) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    {
        Journal journal(dir / "out", 0, kOptions);
        journal.append(completion_of(1, 0));
        for (int64_t sample : {2, 0, 1}) journal.append(completion_of(0, sample, 3));
    }
    merge_output(dir / "out", 4);
    std::string expected;
    for (int64_t sample : {0, 1, 2}) expected += to_json(completion_of(0, sample, 3), false) + "\n";
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"),
              expected + to_json(completion_of(1), false) + "\n");
}

TEST(Journal, ResumesWithAnyNumberOfRanks) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    for (int rank = 0; rank < 3; ++rank) {
        Journal journal(dir / "out", rank, kOptions);
        journal.append(completion_of(rank));
    }
    Journal journal(dir / "out", 0, kOptions);
    EXPECT_EQ(journal.num_done(), 3);
    EXPECT_TRUE(journal.is_done(2, 0));
    EXPECT_FALSE(journal.is_done(2, 1));
    EXPECT_FALSE(journal.is_done(3, 0));
    journal.append(completion_of(3));
    merge_output(dir / "out", 4);
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(4));
}

TEST(Journal, DropsATornLastLine) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    const std::string part = part_path(dir / "out", 0);
    {
        Journal journal(dir / "out", 0, kOptions);
        for (int64_t i = 0; i < 3; ++i) journal.append(completion_of(i));
    }
    const std::string whole = read_file(part);
    const size_t last_line = whole.rfind('\n', whole.size() - 2) + 1;
    for (size_t size = last_line; size < whole.size(); size += 5) {
        write_file(part, whole.substr(0, size));
        Journal journal(dir / "out", 0, kOptions);
        EXPECT_EQ(journal.num_done(), 2) << size;
        EXPECT_EQ(std::filesystem::file_size(part), last_line);
        journal.append(completion_of(2));
        EXPECT_EQ(read_file(part), whole);
    }
}

TEST(Journal, DamageInTheMiddleCostsOneRequest) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    const std::string part = part_path(dir / "out", 0);
    {
        Journal journal(dir / "out", 0, kOptions);
        for (int64_t i = 0; i < 3; ++i) journal.append(completion_of(i));
    }
    const std::string whole = read_file(part);
    for (const char* victim : {"text of 1", "\"index\": 1"}) {
        std::string damaged = whole;
        damaged[damaged.find(victim) + std::string(victim).size() - 1] = '2';
        write_file(part, damaged);
        Journal journal(dir / "out", 0, kOptions);
        EXPECT_EQ(journal.num_done(), 2);
        EXPECT_FALSE(journal.is_done(1, 0));
    }
    {
        Journal journal(dir / "out", 0, kOptions);
        journal.append(completion_of(1));
    }
    merge_output(dir / "out", 3);
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(3));
}

TEST(Journal, RefusesAnotherRunAndNamesTheDifference) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    std::string other = kDescription;
    other.replace(other.find("seed: 1"), 7, "seed: 2");
    EXPECT_ERROR(prepare_output(dir / "out", other), ErrorKind::usage,
                 "sampling.seed: 1 before, 2 now");
    EXPECT_ERROR(prepare_output(dir / "out", std::string(kDescription) + "more: 1\n"),
                 ErrorKind::usage, "more is new (another version of ferry?)");
}

TEST(Journal, ARunThatDidNotSayItsEndOfSentenceTokensGoesOn) {
    const TempDir dir;
    prepare_output(dir / "old", kDescription);
    const std::string now = std::string(kDescription) + "eos_tokens: 1 2\n";
    EXPECT_EQ(prepare_output(dir / "old", now), OutputState::unfinished);
    prepare_output(dir / "new", now);
    EXPECT_ERROR(prepare_output(dir / "new", std::string(kDescription) + "eos_tokens: 1\n"),
                 ErrorKind::usage, "eos_tokens: 1 2 before, 1 now");
}

TEST(Journal, ARunFromBeforeASettingGoesOnWithoutIt) {
    const TempDir dir;
    const std::string before = "numerics:\n  tp_slices: 8\nsampling:\n  seed: 1\n";
    const auto now = [](const char* value) {
        return fmt::format(
            "numerics:\n  int8_activations: {}\n  tp_slices: 8\nsampling:\n  seed: 1\n", value);
    };
    prepare_output(dir / "out", before);
    EXPECT_EQ(prepare_output(dir / "out", now("false")), OutputState::unfinished);
    EXPECT_ERROR(prepare_output(dir / "out", now("true")), ErrorKind::usage,
                 "numerics.int8_activations is new");
    prepare_output(dir / "new", now("true"));
    EXPECT_ERROR(prepare_output(dir / "new", now("false")), ErrorKind::usage,
                 "numerics.int8_activations: true before, false now");
}

TEST(Journal, RefusesAFolderThatIsNotItsOwn) {
    const TempDir dir;
    write_file(dir / "completions.jsonl", "precious\n");
    EXPECT_ERROR(prepare_output(dir.path(), kDescription), ErrorKind::usage, "no run.yaml");
    EXPECT_EQ(read_file(dir / "completions.jsonl"), "precious\n");
}

TEST(Journal, FolderThatCannotBeMade) {
    const TempDir dir;
    write_file(dir / "file", "");
    EXPECT_ERROR(prepare_output(dir / "file/out", kDescription), ErrorKind::input, "file/out");
    EXPECT_ERROR(prepare_output("/proc/ferry", kDescription), ErrorKind::input, "/proc/ferry");
}

TEST(Journal, TwoRunsInOneFolderAreNoticed) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    Journal journal(dir / "out", 0, kOptions);
    EXPECT_ERROR(Journal(dir / "out", 0, kOptions), ErrorKind::usage, "another run is writing");
}

TEST(Journal, ARunThatFinishesWhileAnotherStartsIsNoticed) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    { Journal(dir / "out", 0, kOptions).append(completion_of(0)); }
    merge_output(dir / "out", 1);
    EXPECT_ERROR(Journal(dir / "out", 0, kOptions), ErrorKind::usage, "another run has just");
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(1));
}

// File systems without locks do not keep another run out.
TEST(Journal, PartsThatAreGoneDoNotMakeAnEmptyResult) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    for (int64_t i = 0; i < 3; ++i) Journal(dir / "out", 0, kOptions).append(completion_of(i));
    Journal journal(dir / "out", 1, kOptions);
    EXPECT_EQ(journal.num_done(), 3);
    merge_output(dir / "out", 3);  // by the other
    EXPECT_ERROR(merge_output(dir / "out", 3), ErrorKind::input, "3 of 3 completions are gone");
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(3));
}

TEST(Journal, StoppedBetweenMergingAndCleaning) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    { Journal(dir / "out", 0, kOptions).append(completion_of(0)); }
    const std::string part = read_file(part_path(dir / "out", 0));
    merge_output(dir / "out", 1);
    write_file(part_path(dir / "out", 0), part);
    EXPECT_EQ(prepare_output(dir / "out", kDescription), OutputState::finished);
    EXPECT_TRUE(list_parts(dir / "out").empty());
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(1));
}

// A description of which a kill left only the temporary name goes when the run is done.
TEST(Journal, DescriptionsThatWereNeverNamedGo) {
    const TempDir dir;
    const std::string torn = dir / "out/run.yaml.0badcafe.tmp";
    std::filesystem::create_directory(dir / "out");
    write_file(torn, "half of it");
    prepare_output(dir / "out", kDescription);
    EXPECT_TRUE(std::filesystem::exists(torn));  // it may be that of a run that starts now
    { Journal(dir / "out", 0, kOptions).append(completion_of(0)); }
    merge_output(dir / "out", 1);
    EXPECT_FALSE(std::filesystem::exists(torn));
    write_file(torn, "half of it");
    EXPECT_EQ(prepare_output(dir / "out", kDescription), OutputState::finished);
    EXPECT_FALSE(std::filesystem::exists(torn));
    EXPECT_TRUE(std::filesystem::exists(dir / "out/run.yaml"));
}

// Runs `body` in a process of its own; returns its wait status.
template <typename Body>
int in_child(Body&& body, int64_t kill_after_us = -1) {
    const pid_t child = ::fork();
    if (child == 0) {
        body();
        ::_exit(0);
    }
    if (kill_after_us >= 0) {
        ::usleep(static_cast<useconds_t>(kill_after_us));
        ::kill(child, SIGKILL);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
}

TEST(Journal, OfRunsThatStartAtOnceOneDescribesTheFolder) {
    constexpr int kRuns = 4;
    for (int round = 0; round < 20; ++round) {
        const TempDir dir;
        int starting_gun[2];
        ASSERT_EQ(::pipe(starting_gun), 0);
        std::vector<pid_t> runs;
        for (int run = 0; run < kRuns; ++run) {
            runs.push_back(::fork());
            if (runs.back() != 0) continue;
            char shot = 0;
            ::close(starting_gun[1]);
            [[maybe_unused]] const ssize_t got = ::read(starting_gun[0], &shot, 1);
            try {
                prepare_output(dir / "out", "seed: " + std::to_string(run) + "\n");
            } catch (const Error& error) {
                ::_exit(exit_code(error.kind()));
            }
            ::_exit(0);
        }
        ::close(starting_gun[0]);
        ::close(starting_gun[1]);
        int first = -1, num_refused = 0;
        for (int run = 0; run < kRuns; ++run) {
            int status = 0;
            ::waitpid(runs[static_cast<size_t>(run)], &status, 0);
            if (WEXITSTATUS(status) == 0) first = run;
            num_refused += WEXITSTATUS(status) == exit_code(ErrorKind::usage) ? 1 : 0;
        }
        EXPECT_EQ(num_refused, kRuns - 1);
        EXPECT_EQ(read_file(dir / "out/run.yaml"), "seed: " + std::to_string(first) + "\n");
        const auto files = std::filesystem::directory_iterator(dir / "out");
        EXPECT_EQ(std::distance(begin(files), end(files)), 1);
    }
}

TEST(Journal, ReadOnlyFolder) {
    const TempDir dir;
    std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
    prepare_output(dir / "out", kDescription);
    std::filesystem::permissions(dir / "out", std::filesystem::perms(0555));
    const int status = in_child([&] {
        // Root may write everywhere: become nobody.
        if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(1);
        try {
            Journal journal(dir / "out", 0, kOptions);
        } catch (const Error& error) {
            const std::string message = error.what();
            const bool says = message.find(
                                  "part-00000.jsonl: cannot be opened: Permission "
                                  "denied") != std::string::npos;
            ::_exit(says ? exit_code(error.kind()) : 1);
        }
    });
    EXPECT_EQ(WEXITSTATUS(status), exit_code(ErrorKind::input));
    std::filesystem::permissions(dir / "out", std::filesystem::perms(0755));
}

TEST(Journal, FullDiskIsOneClearErrorAndNothingIsLost) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    const int status = in_child([&] {
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{1000, 1000};  // bytes of a file: more is refused as by a full disk
        ::setrlimit(RLIMIT_FSIZE, &limit);
        try {
            Journal journal(dir / "out", 0, kOptions);
            for (int64_t i = 0; i < 100; ++i) journal.append(completion_of(i));
        } catch (const Error& error) {
            write_file(dir / "message", error.what());
            ::_exit(exit_code(error.kind()));
        }
    });
    EXPECT_EQ(WEXITSTATUS(status), exit_code(ErrorKind::input));
    EXPECT_THAT(read_file(dir / "message"), ::testing::HasSubstr("part-00000.jsonl: cannot be "
                                                                 "written: File too large; "));
    Journal journal(dir / "out", 0, kOptions);
    EXPECT_THAT(read_file(dir / "message"), ::testing::HasSubstr("finished requests are kept"));
    EXPECT_GT(journal.num_done(), 2);
    for (int64_t i = journal.num_done(); i < 100; ++i) journal.append(completion_of(i));
    merge_output(dir / "out", 100);
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(100));
}

TEST(Journal, MergeOnAFullDiskKeepsTheParts) {
    const TempDir dir;
    prepare_output(dir / "out", kDescription);
    {
        Journal journal(dir / "out", 0, kOptions);
        for (int64_t i = 0; i < 100; ++i) journal.append(completion_of(i));
    }
    const int status = in_child([&] {
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{1000, 1000};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        try {
            merge_output(dir / "out", 100);
        } catch (const Error& error) {
            ::_exit(exit_code(error.kind()));
        }
    });
    EXPECT_EQ(WEXITSTATUS(status), exit_code(ErrorKind::input));
    EXPECT_FALSE(std::filesystem::exists(dir / "out/completions.jsonl"));
    EXPECT_FALSE(std::filesystem::exists(dir / "out/completions.jsonl.tmp"));
    EXPECT_EQ(merge_output(dir / "out", 100), 100);
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(100));
}

TEST(Journal, KilledFiftyTimesNothingIsLostOrDoubled) {
    constexpr int64_t kRequests = 400;
    const TempDir dir;
    Random random(3);
    int num_killed = 0;
    const auto run = [&] {
        if (prepare_output(dir / "out", kDescription) == OutputState::finished) return;
        {
            Journal journal(dir / "out", 0, {.sync_interval_s = 0.01, .with_timings = false});
            for (int64_t i = 0; i < kRequests; ++i)
                if (!journal.is_done(i, 0)) {
                    journal.append(completion_of(i));
                    ::usleep(100);
                }
        }
        merge_output(dir / "out", kRequests);
    };
    for (int round = 0; round < 50; ++round) {
        const int status = in_child(run, 200 + random.next_u32() % 3000);
        num_killed += WIFSIGNALED(status) ? 1 : 0;
    }
    run();
    EXPECT_EQ(read_file(dir / "out/completions.jsonl"), expected_lines(kRequests));
    EXPECT_GT(num_killed, 5);
}

}  // namespace
}  // namespace ferry
