#include "comm/idle.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

// Naps grow with the wait, of which they lose at most this part. Short ones all along would keep
// the core just busy enough that the kernel never moves another rank's work to it.
constexpr auto kYieldFor = std::chrono::milliseconds(1);
constexpr long kNapShare = 32;
constexpr long kShortestNapNs = 20'000, kLongestNapNs = 500'000;

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
    const long share = std::chrono::nanoseconds(now - since_).count() / kNapShare;
    const timespec pause{0, std::clamp(share, kShortestNapNs, kLongestNapNs)};
    nanosleep(&pause, nullptr);
    return true;
}

}  // namespace ferry
