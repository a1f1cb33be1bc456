// One rank's part of a trace in the format that chrome://tracing and ui.perfetto.dev open
// ("Trace Event Format"): spans on a track for computing, one for each micro-batch's exchange in
// flight and one for the stream of a GPU, arrows from dispatch over its experts to combine,
// counters.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/trace_marks.h"
#include "comm/exchange.h"

namespace ferry {

// Exchanges of each micro-batch that a rank, or all of them, recorded from begin to end: arrows are
// drawn for these only, so that none lacks its end.
struct WholeExchanges {
    std::array<int64_t, kMaxMicroBatches> first{};
    std::array<int64_t, kMaxMicroBatches> last{};  // below first: none
};
// Of marks not before `begin_ns` and not after `end_ns`. On a rank with both roles: as both.
WholeExchanges whole_exchanges(std::span<const TraceMark> marks, bool is_attention, bool is_expert,
                               int64_t begin_ns, int64_t end_ns);

struct RankTrace {
    int rank = 0;
    std::string name;         // "rank 0 (attention) on node1"
    int attention_rank = -1;  // -1: has not this role
    int expert_rank = -1;
    int num_attention = 1, num_expert = 1;  // of the layout
    std::span<const TraceEvent> events{};
    std::span<const TraceEvent> gpu_events{};  // of its GPU's stream; empty without one
    std::span<const TraceMark> marks{};
    std::span<const CounterSample> samples{};
    int64_t begin_ns = 0;  // what was before is left out
    WholeExchanges whole{};
    // From this rank's clock to microseconds of the trace.
    std::function<double(int64_t)> to_us;
};

// Events, separated by commas; none at the front and the end.
std::string trace_events_json(const RankTrace& trace);

}  // namespace ferry
