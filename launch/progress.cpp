#include "launch/progress.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/log.h"

namespace ferry {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{200};
constexpr std::chrono::seconds kPlainInterval{10};
constexpr const char* kEraseLine = "\r\033[K";

}  // namespace

std::string format_duration(double seconds) {
    const int64_t whole = std::llround(seconds);
    const int64_t hours = whole / 3600, minutes = whole / 60 % 60;
    if (hours >= 24) return fmt::format("{} d {:02}:{:02}", hours / 24, hours % 24, minutes);
    if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
    return fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string progress_line(const ProgressCounts& counts, int64_t total, int64_t done_before,
                          double seconds) {
    // Lines of the input may ask for more samples than the configuration, from which the total is.
    std::string line =
        total > 0 ? fmt::format("{}/{} requests", counts.done, std::max(total, counts.done))
                  : fmt::format("{} requests", counts.done);
    if (counts.running > 0) line += fmt::format(", {} running", counts.running);
    if (counts.failed > 0) line += fmt::format(", {} failed", counts.failed);
    if (seconds > 0)
        line += fmt::format(", {:.1f} tokens/s", static_cast<double>(counts.tokens) / seconds);
    const int64_t done_now = counts.done - done_before;
    if (total > counts.done && done_now > 0)
        line += ", ETA " + format_duration(seconds / static_cast<double>(done_now) *
                                           static_cast<double>(total - counts.done));
    return line;
}

Progress::Progress(const Options& options) : options_(options) {}

Progress::~Progress() {
    if (line_is_open_) std::fputc('\n', stderr);
}

void Progress::update(const ProgressCounts& counts) {
    if (!options_.enabled) return;
    const Clock::duration since = Clock::now() - last_print_;
    if (since < (options_.terminal ? Clock::duration(kTerminalInterval) : kPlainInterval)) return;
    print(counts);
}

void Progress::finish(const ProgressCounts& counts) {
    if (!options_.enabled) return;
    print(counts);
    if (line_is_open_) std::fputc('\n', stderr);
    line_is_open_ = false;
}

void Progress::clear() {
    if (!line_is_open_) return;
    std::fputs(kEraseLine, stderr);
    line_is_open_ = false;
}

void Progress::print(const ProgressCounts& counts) {
    last_print_ = Clock::now();
    const double seconds = std::chrono::duration<double>(last_print_ - start_).count();
    const std::string line = progress_line(counts, options_.total, options_.done_before, seconds);
    if (!options_.terminal) return log_info("{}", line);
    std::fprintf(stderr, "%s%s", kEraseLine, line.c_str());
    std::fflush(stderr);
    line_is_open_ = true;
}

}  // namespace ferry
