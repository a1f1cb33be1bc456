// How far the clocks of ranks are apart, measured over MPI, so that times of different hosts can be
// put on one axis.
#pragma once
#include <cstdint>
#include <functional>

#include "comm/world.h"

namespace ferry {

// Of one rank: its clock minus rank 0's.
struct ClockOffset {
    int64_t at_ns = 0;      // on this rank's clock, when it was measured
    int64_t offset_ns = 0;  // off by at most round_trip_ns / 2
    int64_t round_trip_ns = 0;
};

// `now`: this rank's clock. Collective: rank 0 exchanges some small messages with each rank in turn
// and believes the quickest answer, as NTP does (RFC 5905, section 8): an answer with the remote
// time r, asked for at t0 and here at t1, says offset = r - (t0 + t1) / 2.
ClockOffset measure_clock_offset(World& world, const std::function<int64_t()>& now);

// From this rank's clock to rank 0's: offsets at two times, and a straight line through them.
class ClockMap {
  public:
    ClockMap(const ClockOffset& begin, const ClockOffset& end) : begin_(begin), end_(end) {}

    int64_t to_rank_0(int64_t local_ns) const;
    double drift() const;  // seconds per second
    int64_t error_ns() const;

  private:
    ClockOffset begin_, end_;
};

}  // namespace ferry
