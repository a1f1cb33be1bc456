// Reads a trace that log.trace wrote (runtime/run_trace.h).
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ferry::report {

struct TraceSpan {
    int rank = 0, track = 0;
    double begin_us = 0, end_us = 0;
    std::string name;
    int layer = -1, micro_batch = -1;
    int64_t bytes = 0;
};

// One end of an arrow: begins (s), goes on (t) or ends (f) on a track.
struct TraceFlow {
    int rank = 0, track = 0;
    double at_us = 0;
    int64_t id = 0;
    char phase = 's';
};

struct TraceFile {
    std::map<int, std::string> rank_names;                   // "rank 0 (attention) on node1"
    std::map<std::pair<int, int>, std::string> track_names;  // by (rank, track)
    std::vector<TraceSpan> spans;                            // in order of time
    std::vector<TraceFlow> flows;
};

// The text of a JSON object with "traceEvents". Throws Error(input).
TraceFile parse_trace(const std::string& text, const std::string& name);

}  // namespace ferry::report
