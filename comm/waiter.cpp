#include "comm/waiter.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>

#include "base/error.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kYieldFor = std::chrono::milliseconds(2);
constexpr long kSleepNs = 20'000;
constexpr int64_t kPollsPerClock = 64;
constexpr double kAfterWatchdogS = 3.0;

}  // namespace

void Waiter::begin(Activity activity, int layer, int micro_batch) {
    ProgressState& state = progress_state();
    activity_before_ = state.activity.load(std::memory_order_relaxed);
    state.layer.store(layer, std::memory_order_relaxed);
    state.micro_batch.store(micro_batch, std::memory_order_relaxed);
    state.enter(activity);
    idle_polls_ = 0;
}

void Waiter::end() {
    progress_state().num_waiting.store(0, std::memory_order_relaxed);
    progress_state().enter(activity_before_);
}

bool Waiter::idle() {
    if (idle_polls_++ == 0) idle_since_ = Clock::now();
    if (idle_polls_ % kPollsPerClock != 0) {
        sched_yield();
        return false;
    }
    if (Clock::now() - idle_since_ < kYieldFor) {
        sched_yield();
        return false;
    }
    // Long waits: leave the core to ranks that compute. The kernel rounds sleeps of a thread up by
    // its timer slack (50 us unless told).
    thread_local const int slack = prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    (void)slack;
    const timespec pause{0, kSleepNs};
    nanosleep(&pause, nullptr);
    --idle_polls_;  // from now on every poll sleeps
    return true;
}

void Waiter::note_missing(int world_rank) {
    ProgressState& state = progress_state();
    const int index = state.num_waiting.load(std::memory_order_relaxed);
    if (index < ProgressState::kMaxWaiting)
        state.waiting_for[index].store(world_rank, std::memory_order_relaxed);
    state.num_waiting.store(index + 1, std::memory_order_release);
}

bool Waiter::overdue() {
    const std::chrono::duration<double> idle_for = Clock::now() - idle_since_;
    const ProgressState& state = progress_state();
    const double limit_s = stall_timeout_s_ + (state.watched.load() ? kAfterWatchdogS : 0.0);
    return idle_for.count() > limit_s || state.failed.load(std::memory_order_relaxed);
}

void Waiter::fail() {
    const ProgressState& state = progress_state();
    if (state.failed)
        throw Error(ErrorKind::communication, "rank {} on {} stops at {}: {}", transport_.rank(),
                    transport_.host(transport_.rank()), state.describe(), state.failure());
    const std::chrono::duration<double> idle_for = Clock::now() - idle_since_;
    std::string hosts;
    const int count = std::min(state.num_waiting.load(), ProgressState::kMaxWaiting);
    for (int i = 0; i < count; ++i)
        hosts += fmt::format("{}{} on {}", i ? ", " : "", state.waiting_for[i].load(),
                             transport_.host(state.waiting_for[i].load()));
    throw Error(ErrorKind::communication,
                "rank {} on {} gave up after {:.1f} s without a message ({} transport): {} (rank "
                "{}); is that rank alive and its network up? (engine.stall_timeout_s is {})",
                transport_.rank(), transport_.host(transport_.rank()), idle_for.count(),
                transport_.name(), state.describe(), hosts.empty() ? "none" : hosts,
                stall_timeout_s_);
}

}  // namespace ferry
