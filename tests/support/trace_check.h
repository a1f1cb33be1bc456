// A strict reader of the traces that ferry writes: what Chrome and Perfetto need, and what must
// hold between ranks.
#pragma once
#include <string>
#include <vector>

namespace ferry::testing {

struct TraceCheck {
    std::vector<std::string> problems;  // at most 20
    int num_ranks = 0;
    int num_spans = 0;
    int num_flows = 0;
    int num_counters = 0;
};

// The rules: every event has the keys of its kind and no others, of the right types; every rank and
// track that is used has a name; spans of a track lie beside or inside each other; counters do not
// go back in time; each flow begins once, goes on at least once and ends once, in this order of
// time up to what clocks of its ranks may be off ("otherData"), each time inside a span of its
// track.
TraceCheck check_trace(const std::string& text);

}  // namespace ferry::testing
