// How a running job is, in a small file that rank 0 replaces at most once a second and that `ferry
// top` reads. Written to a temporary name and renamed: a reader sees a whole file.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/trace.h"
#include "comm/progress_state.h"
#include "comm/watchdog.h"
#include "runtime/engine.h"

namespace ferry {

constexpr const char* kStatusFileName = "status.json";

// What stays the same during a job.
struct JobDescription {
    std::string command;  // "generate"
    std::string model;
    std::string layout;           // "1 attention + 2 expert ranks"
    int64_t num_requests = 0;     // 0: not known
    int64_t num_done_before = 0;  // of them, by earlier runs
    struct Rank {
        std::string host, role;
    };
    std::vector<Rank> ranks{};
};

// What all ranks had done at one moment, by rank.
struct JobSnapshot {
    double time_s = 0;  // of a clock that does not jump
    std::vector<RankStatus> ranks{};

    int64_t sum(Tally tally) const;
};

// What happened between two snapshots, as shares and rates.
struct JobRates {
    double tokens_per_s = 0;
    std::vector<double> phase_shares;  // by zone: of all ranks' time
    std::vector<double> busy_shares;   // by rank: not waiting for others
    int slowest_phase = -1;            // zone with the largest share, waits left out; -1: none
    int slowest_rank = -1;             // which waited least; -1: fewer than two ranks, or no time
};
JobRates rates_between(const JobSnapshot& before, const JobSnapshot& now);

enum class JobState { loading, running, finished, stopped };
std::string_view to_string(JobState state);

// The file's text; `before` is empty at the start.
std::string status_json(const JobDescription& job, JobState state, const JobSnapshot& now,
                        const JobRates& rates, double elapsed_s);

// For JobDescription.
std::string layout_text(const Layout& layout);
std::vector<JobDescription::Rank> describe_ranks(const Layout& layout, const World& world);
// What rank 0 knows of the job's first `num_ranks` ranks; `watchdog`: null with one rank.
JobSnapshot take_snapshot(int num_ranks, const Watchdog* watchdog);
// What all ranks know at this moment. Collective.
JobSnapshot gather_snapshot(World& world);
// After a step: what the engine has and holds.
void note_engine(const Engine& engine, ProgressState& state);

class StatusFile {
  public:
    using Take = std::function<JobSnapshot()>;
    // On rank 0; `dir` empty: does nothing. Writes once.
    StatusFile(std::string dir, JobDescription job, Take take);
    // After a step: cheap unless a second has passed.
    void update();
    void finish(JobState state);
    ~StatusFile();  // an end without finish() is `stopped`

  private:
    using Clock = std::chrono::steady_clock;
    void write();

    std::string dir_;
    JobDescription job_;
    Take take_;
    JobState state_ = JobState::loading;
    Clock::time_point start_ = Clock::now(), last_write_{};
    JobSnapshot before_;
    JobRates rates_;
    bool failed_ = false;
};

// For people: what the file says, on several lines. `age_s`: since it was written. Throws
// Error(input) for a text that is none.
std::string status_text(const std::string& json, const std::string& where, double age_s);
// Whether the job that wrote it has ended.
bool has_ended(const std::string& json);

}  // namespace ferry
