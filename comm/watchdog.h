// Liveness of the job, seen by Ferry itself: neither MPI nor UCX notices a silent partition, and
// survivors of a killed rank may wait for ever.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "comm/progress_state.h"
#include "comm/world.h"

namespace ferry {

struct WatchdogOptions {
    double heartbeat_s = 0.5;     // between signs of life
    double dead_after_s = 6.0;    // silence after which a rank counts as lost
    double stall_timeout_s = 60;  // without progress while armed (engine.stall_timeout_s)
    double grace_s = 2.0;         // for the main thread to end the run after a failure
    // Receives this rank's report, one line; default: the log.
    std::function<void(const std::string& report)> report;
    // Runs when the grace is over, on the watchdog's thread; default: exit code 5 at once.
    std::function<void()> give_up;
};

// One thread per rank with TCP connections of its own, all to rank 0, which passes news on. When a
// rank dies, is cut off or makes no progress, every rank that can be reached reports where it is
// (progress_state()), and failure() is set: waits of the main thread end with Error(communication)
// within milliseconds, so that launch/ can end the job; a main thread that is stuck elsewhere is
// ended by exit code 5 after the grace. A world of one rank watches for stalls only.
class Watchdog {
  public:
    // Collective. Warns in the log, and goes on, when rank 0 cannot be reached.
    Watchdog(World& world, const WatchdogOptions& options);
    // Says farewell, so that the others do not count this rank as lost. Collective in spirit: end
    // it on every rank after the last exchange. After a failure it only stops the thread.
    ~Watchdog();
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

    // While armed, progress_state().beats must grow within the stall timeout. Disarmed at first:
    // loading and input may be slow.
    void arm(bool armed);
    bool failed() const;
    // Over all ranks as of their last heartbeats, on rank 0; elsewhere, and of ranks that cannot be
    // reached, this rank's own.
    int64_t total(Tally tally) const;
    // Of one rank, likewise.
    RankStatus status_of(int rank) const;
    // "rank 2 on host3 is gone (connection closed)"; empty while all is well.
    std::string failure() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
