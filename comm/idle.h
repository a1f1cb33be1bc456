// How a thread waits in a loop of its own without keeping a core from those that compute.
#pragma once
#include <chrono>

namespace ferry {

class Idle {
  public:
    // Something happened: the wait starts anew.
    void reset() { waiting_ = false; }
    // After a poll that found nothing: yields the core, and after a while sleeps, for some tens of
    // microseconds at first and never for more than half a millisecond. True when it is time to
    // look at clocks and flags.
    bool pause();
    // Since the first pause after reset().
    double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - since_).count();
    }

  private:
    std::chrono::steady_clock::time_point since_{};
    bool waiting_ = false;
};

}  // namespace ferry
