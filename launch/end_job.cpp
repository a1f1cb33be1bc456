#include "launch/end_job.h"

#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/log.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

// True when the launcher ends this rank meanwhile, as it does when rank 0 aborts the job.
bool is_ended_by_rank_0() {
    constexpr std::chrono::milliseconds kPatience{3000}, kLook{20};
    const int before = stop_signal();
    for (auto waited = kLook; waited < kPatience; waited += kLook) {
        std::this_thread::sleep_for(kLook);
        if (stop_signal() == SIGTERM && before != SIGTERM) return true;
    }
    return false;
}

}  // namespace

void end_job(World& world, const Error& error) {
    if (world.rank() != 0 && is_ended_by_rank_0()) std::_Exit(exit_code(error.kind()));
    tell("ferry: rank {} on {}: {}: {}\n", world.rank(), world.host(), to_string(error.kind()),
         error.what());
    world.abort(exit_code(error.kind()));
}

void tell_stop(const World& world, const Error& error) {
    if (world.rank() != 0) return;
    tell("ferry: {}: {}\n", to_string(error.kind()), error.what());
    std::fflush(nullptr);
}

}  // namespace ferry
