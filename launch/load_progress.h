// How far verifying and loading a checkpoint is on all ranks together, with GB/s.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>

#include "comm/progress_state.h"
#include "runtime/loaded_engine.h"

namespace ferry {

class LoadProgress {
  public:
    // `total`: over all ranks, of what each has noted in its progress_state() (Watchdog::total).
    LoadProgress(bool enabled, std::function<int64_t(Tally)> total);

    // May be called from several threads; must not outlive this object.
    LoadedEngine::OnProgress callback();
    // Says what all ranks loaded, and how fast, with what they brought to GPUs of it. Collective.
    void finish(World& world, const LoadedEngine& loaded);

  private:
    using Clock = std::chrono::steady_clock;
    void update(int64_t total_bytes, bool verifying);

    bool enabled_;
    bool terminal_;
    std::function<int64_t(Tally)> total_;
    std::mutex mutex_;
    Clock::time_point start_ = Clock::now();  // of verifying, then of loading
    Clock::time_point last_print_ = start_;
    bool verifying_ = false;
};

}  // namespace ferry
