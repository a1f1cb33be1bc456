// The one way to wait: drives a transport, gives the core away when idle, keeps the deadline.
#pragma once
#include "comm/idle.h"
#include "comm/progress_state.h"
#include "comm/transport.h"

namespace ferry {

class Waiter {
  public:
    Waiter(Transport& transport, double stall_timeout_s)
        : transport_(transport), stall_timeout_s_(stall_timeout_s) {}

    // One wait for something that must happen: begin(), then poll() until it has. `waiting_on(n)`
    // tells who has not answered; it is asked only when the wait is long.
    void begin(Activity activity, int layer, int micro_batch);

    // Moves messages; when nothing moved, yields the core, and after a while sleeps (idle.h).
    // Throws Error(communication) with `missing(add)` called to name the ranks, once nothing has
    // moved for the stall timeout or the watchdog has found the run dead.
    template <typename Missing>
    void poll(Missing&& missing) {
        transport_.progress();
        if (transport_.num_moves() != num_moves_) {  // since the last poll, whoever saw it
            num_moves_ = transport_.num_moves();
            idle_.reset();
            progress_state().beat();
            return;
        }
        if (idle_.pause() && deadline_passed(missing)) fail();
    }
    void end();

    double stall_timeout_s() const { return stall_timeout_s_; }

  private:
    void note_missing(int world_rank);
    bool overdue();
    [[noreturn]] void fail();

    template <typename Missing>
    bool deadline_passed(Missing&& missing) {
        progress_state().num_waiting.store(0, std::memory_order_relaxed);
        missing([this](int world_rank) { note_missing(world_rank); });
        return overdue();
    }

    Transport& transport_;
    double stall_timeout_s_;
    Idle idle_;
    uint64_t num_moves_ = 0;  // of the transport, as of the last poll
    Activity activity_before_ = Activity::computing;
};

}  // namespace ferry
