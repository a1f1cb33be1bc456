// How far a run is: one line that is rewritten on a terminal, plain lines every few seconds
// elsewhere.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace ferry {

struct ProgressCounts {
    int64_t done = 0;    // requests, those of earlier runs included
    int64_t failed = 0;  // of them
    int64_t running = 0;
    int64_t tokens = 0;  // generated in this run
};

// "12/100 requests, 3 running, 1 failed, 245.3 tokens/s, ETA 1:05". `total` below 1: not known.
// `done_before`: requests that this run did not do; `seconds`: since it began.
std::string progress_line(const ProgressCounts& counts, int64_t total, int64_t done_before,
                          double seconds);
// "1:05", "2:03:04", "3 d 02:00"
std::string format_duration(double seconds);

class Progress {
  public:
    using Clock = std::chrono::steady_clock;
    struct Options {
        bool enabled = true;
        bool terminal = false;  // standard error is one
        int64_t total = 0;      // requests, 0: not known
        int64_t done_before = 0;
    };

    explicit Progress(const Options& options);
    ~Progress();  // leaves the terminal on a fresh line

    // Cheap when it is not time to print.
    void update(const ProgressCounts& counts);
    // Prints whatever the time.
    void finish(const ProgressCounts& counts);
    // Takes the line off the terminal, so that something else can be printed.
    void clear();

  private:
    void print(const ProgressCounts& counts);

    Options options_;
    Clock::time_point start_ = Clock::now();
    Clock::time_point last_print_ = start_;
    bool line_is_open_ = false;
};

}  // namespace ferry
