// How far verifying and loading a checkpoint is, with GB/s.
#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>

#include "runtime/loaded_engine.h"

namespace ferry {

class LoadProgress {
  public:
    explicit LoadProgress(bool enabled);

    // May be called from several threads; must not outlive this object.
    LoadedEngine::OnProgress callback();
    // Says what was loaded, and how fast.
    void finish();

  private:
    using Clock = std::chrono::steady_clock;
    void update(int64_t bytes, int64_t total_bytes, bool verifying);

    bool enabled_;
    bool terminal_;
    std::mutex mutex_;
    Clock::time_point start_ = Clock::now();  // of verifying, then of loading
    Clock::time_point last_print_ = start_;
    bool verifying_ = false;
    int64_t bytes_ = 0;
};

}  // namespace ferry
