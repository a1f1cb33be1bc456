#include "comm/waiter.h"

#include <algorithm>

#include "base/error.h"

namespace ferry {

void Waiter::begin(Activity activity, int layer, int micro_batch) {
    ProgressState& state = progress_state();
    activity_before_ = state.activity.load(std::memory_order_relaxed);
    state.layer.store(layer, std::memory_order_relaxed);
    state.micro_batch.store(micro_batch, std::memory_order_relaxed);
    state.enter(activity);
    idle_.reset();
}

void Waiter::end() {
    progress_state().num_waiting.store(0, std::memory_order_relaxed);
    progress_state().enter(activity_before_);
}

void Waiter::note_missing(int world_rank) {
    ProgressState& state = progress_state();
    const int index = state.num_waiting.load(std::memory_order_relaxed);
    if (index < ProgressState::kMaxWaiting)
        state.waiting_for[index].store(world_rank, std::memory_order_relaxed);
    state.num_waiting.store(index + 1, std::memory_order_release);
}

bool Waiter::overdue() {
    const ProgressState& state = progress_state();
    return idle_.seconds() > state.longest_wait_s(stall_timeout_s_) ||
           state.failed.load(std::memory_order_relaxed);
}

void Waiter::fail() {
    const ProgressState& state = progress_state();
    if (state.failed)
        throw Error(ErrorKind::communication, "rank {} on {} stops at {}: {}", transport_.rank(),
                    transport_.host(transport_.rank()), state.describe(), state.failure());
    std::string hosts;
    const int count = std::min(state.num_waiting.load(), ProgressState::kMaxWaiting);
    for (int i = 0; i < count; ++i)
        hosts += fmt::format("{}{} on {}", i ? ", " : "", state.waiting_for[i].load(),
                             transport_.host(state.waiting_for[i].load()));
    throw Error(ErrorKind::communication,
                "rank {} on {} gave up after {:.1f} s without a message ({} transport): {} (rank "
                "{}); is that rank alive and its network up? (engine.stall_timeout_s is {})",
                transport_.rank(), transport_.host(transport_.rank()), idle_.seconds(),
                transport_.name(), state.describe(), hosts.empty() ? "none" : hosts,
                stall_timeout_s_);
}

}  // namespace ferry
