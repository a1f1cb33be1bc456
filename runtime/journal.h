// [15] The output folder of a run: finished requests, kept durably, and merged at the end.
//
//   run.yaml                what the results depend on; another run is refused
//   part-00000.jsonl        finished requests of rank 0, in order of finishing, one per line:
//                           {"index": 4, "sample": 0, "checksum": "…", "completion": {…}}
//   completions.jsonl       all of them in order of the input, when the run is finished; the parts
//                           are gone then
//
// A line reaches the kernel when its request finishes (so it survives the death of the process),
// and the disk at least every `sync_interval_s` (so it survives the death of the node). Lines that
// are torn or damaged are dropped and their requests done again. Parts of a run with other numbers
// of ranks are read too. Failures to write are Error(input), in one line that says what is kept;
// nothing that was kept is ever lost.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/request.h"

namespace ferry {

enum class OutputState { unfinished, finished };

// Rank 0, before any Journal: makes the folder if need be, and compares `run_description` (YAML,
// one setting in each line) with the one that is there. Throws Error(usage) naming the first
// difference, Error(input) for a folder that cannot be used.
OutputState prepare_output(const std::string& dir, const std::string& run_description);

class Journal {
  public:
    struct Options {
        double sync_interval_s = 1;
        bool with_timings = true;
    };

    // Reads all parts of the folder, then opens this rank's own for appending. All ranks must have
    // done so before the first appends. Until it is closed, no other run can begin in the folder:
    // Error(usage), unless the file system has no locks.
    Journal(const std::string& dir, int rank, const Options& options);
    ~Journal();
    Journal(const Journal&) = delete;
    Journal& operator=(const Journal&) = delete;

    // Found in the parts when the journal was opened.
    bool is_done(int64_t index, int64_t sample) const;
    int64_t num_done() const { return static_cast<int64_t>(done_.size()); }

    void append(const Completion& completion);
    // Syncs when it is time to; call it every step.
    void tick();
    // Everything appended is on the disk when it returns.
    void sync();

  private:
    [[noreturn]] void fail(const std::string& what, int error_number) const;

    std::string path_;
    Options options_;
    int fd_ = -1;
    int64_t size_bytes_ = 0;  // of whole lines
    int64_t num_appended_ = 0;
    bool unsynced_ = false;
    std::chrono::steady_clock::time_point last_sync_;
    std::vector<uint64_t> done_;  // sorted keys
};

// Rank 0, when every rank has synced its last request, with its own journal still open so that no
// other run begins: writes completions.jsonl and removes the parts. Returns the number of lines.
// Throws Error(input), with the parts as they were, when they hold less than `num_expected`.
int64_t merge_output(const std::string& dir, int64_t num_expected);

}  // namespace ferry
