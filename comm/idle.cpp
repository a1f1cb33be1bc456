#include "comm/idle.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kYieldFor = std::chrono::milliseconds(2);
constexpr long kSleepNs = 20'000;

}  // namespace

bool Idle::pause() {
    const Clock::time_point now = Clock::now();
    if (!waiting_) since_ = now;
    waiting_ = true;
    if (now - since_ < kYieldFor) {
        sched_yield();
        return false;
    }
    // Long waits: leave the core to ranks that compute. The kernel rounds sleeps of a thread up by
    // its timer slack (50 us unless told).
    thread_local const int slack = prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    (void)slack;
    const timespec pause{0, kSleepNs};
    nanosleep(&pause, nullptr);
    return true;
}

}  // namespace ferry
