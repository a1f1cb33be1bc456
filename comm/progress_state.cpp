#include "comm/progress_state.h"

#include <fmt/core.h>

#include <algorithm>

namespace ferry {

void ProgressState::publish(const Trace& trace) {
    for (size_t z = 0; z < kNumZones; ++z)
        zone_ns[z].store(trace.totals()[z].self_ns, std::memory_order_relaxed);
}

RankStatus ProgressState::status() const {
    RankStatus status;
    for (size_t i = 0; i < kNumTallies; ++i) status.tallies[i] = get(static_cast<Tally>(i));
    for (size_t z = 0; z < kNumZones; ++z)
        status.zone_ns[z] = zone_ns[z].load(std::memory_order_relaxed);
    return status;
}

const char* to_string(Activity activity) {
    switch (activity) {
        case Activity::starting:
            return "starting";
        case Activity::loading:
            return "loading weights";
        case Activity::computing:
            return "computing";
        case Activity::waiting_dispatch:
            return "waiting for tokens";
        case Activity::waiting_combine:
            return "waiting for expert outputs";
        case Activity::waiting_tensor_parallel:
            return "waiting for its tensor-parallel group";
        case Activity::waiting_requests:
            return "waiting for requests";
        case Activity::finishing:
            return "finishing";
    }
    return "?";
}

std::string ProgressState::describe() const {
    std::string text;
    for (const auto& [name, number] :
         {std::pair("step", step.load()), std::pair<const char*, int64_t>("layer", layer.load()),
          std::pair<const char*, int64_t>("micro-batch", micro_batch.load())})
        if (number >= 0) text += fmt::format("{} {}, ", name, number);
    text += to_string(activity.load());
    const int count = num_waiting.load();
    if (count == 0) return text;
    text += count == 1 ? " of rank " : " of ranks ";
    for (int i = 0; i < std::min(count, kMaxWaiting); ++i)
        text += fmt::format("{}{}", i ? ", " : "", waiting_for[i].load());
    if (count > kMaxWaiting) text += fmt::format(" and {} more", count - kMaxWaiting);
    return text;
}

double ProgressState::longest_wait_s(double stall_timeout_s) const {
    constexpr double kAfterWatchdogS = 3.0;
    return stall_timeout_s + (watched.load() ? kAfterWatchdogS : 0.0);
}

void ProgressState::fail(const std::string& why) {
    const std::scoped_lock lock(mutex_);
    if (failed) return;
    failure_ = why;
    failed = true;
}

std::string ProgressState::failure() const {
    const std::scoped_lock lock(mutex_);
    return failure_;
}

void ProgressState::forget_failure() {
    const std::scoped_lock lock(mutex_);
    failure_.clear();
    failed = false;
}

ProgressState& progress_state() {
    static ProgressState state;
    return state;
}

}  // namespace ferry
