// What one zone of base/trace.h costs, without and with its event kept, in nanoseconds: times the
// zones of a run, over its wall time, it is what zones cost when no trace is written
// (tests/bench/trace_overhead.sh).
#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/trace.h"

namespace {

constexpr int kZones = 100'000, kRounds = 21;

double median_zone_ns(bool record) {
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
        ferry::trace().record_events(record ? kZones : 0);
        const int64_t begin_ns = ferry::trace_now_ns();
        for (int i = 0; i < kZones; ++i) {
            ferry::ScopedZone zone(ferry::Zone::gate, i & 63, 0);
            zone.bytes = i;
        }
        rounds.push_back(static_cast<double>(ferry::trace_now_ns() - begin_ns) / kZones);
    }
    std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
    return rounds[kRounds / 2];
}

}  // namespace

int main() {
    std::printf("zone_off_ns %.1f\nzone_on_ns %.1f\n", median_zone_ns(false), median_zone_ns(true));
}
