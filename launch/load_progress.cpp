#include "launch/load_progress.h"

#include <unistd.h>

#include <cstdio>

#include "base/log.h"

namespace ferry {
namespace {

constexpr double kGigabyte = 1e9;

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

LoadProgress::LoadProgress(bool enabled, std::function<int64_t(Tally)> total)
    : enabled_(enabled), terminal_(::isatty(STDERR_FILENO) != 0), total_(std::move(total)) {}

LoadedEngine::OnProgress LoadProgress::callback() {
    return [this](int64_t bytes, int64_t total_bytes, bool verifying) {
        progress_state().set(verifying ? Tally::verified_bytes : Tally::loaded_bytes, bytes);
        const std::lock_guard lock(mutex_);
        update(total_bytes, verifying);
    };
}

void LoadProgress::update(int64_t total_bytes, bool verifying) {
    if (verifying != verifying_) start_ = Clock::now();
    verifying_ = verifying;
    if (!enabled_ || seconds_since(last_print_) < (terminal_ ? 0.2 : 10)) return;
    last_print_ = Clock::now();
    const int64_t bytes = total_(verifying ? Tally::verified_bytes : Tally::loaded_bytes);
    const double gigabytes = static_cast<double>(bytes) / kGigabyte;
    const std::string line = fmt::format(
        "{}: {:.2f} of {:.2f} GB, {:.2f} GB/s", verifying ? "comparing checksums" : "loading",
        gigabytes, static_cast<double>(total_bytes) / kGigabyte, gigabytes / seconds_since(start_));
    if (!terminal_) return log_info("{}", line);
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
}

void LoadProgress::finish(World& world, const LoadedEngine& loaded) {
    const auto all_sum = [&](double value) {
        return static_cast<double>(world.all_sum(static_cast<int64_t>(value)));
    };
    const UploadTotals uploads = loaded.uploads();
    const double gigabytes =
        all_sum(static_cast<double>(progress_state().get(Tally::loaded_bytes))) / kGigabyte;
    const double uploaded = all_sum(static_cast<double>(uploads.bytes)) / kGigabyte;
    const double upload_s = all_sum(uploads.seconds * 1e6) / 1e6;
    if (!enabled_) return;
    const double seconds = seconds_since(start_);
    if (terminal_) std::fputs("\r\033[K", stderr);
    std::string to_gpus;
    if (uploaded > 0)
        to_gpus =
            fmt::format("; {:.2f} GB of it to GPUs through pinned memory, {:.2f} GB/s a thread",
                        uploaded, upload_s > 0 ? uploaded / upload_s : 0);
    log_info("loaded {:.2f} GB in {:.1f} s ({:.2f} GB/s){}", gigabytes, seconds,
             gigabytes / seconds, to_gpus);
}

}  // namespace ferry
