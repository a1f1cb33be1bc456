// For traces only, beside the zones of trace.h: when each exchange passed its stations, from which
// arrows between ranks are drawn, and samples of counters. Nothing is kept until record() is
// called; until then a mark costs one branch.
#pragma once
#include <cstdint>
#include <vector>

#include "base/trace.h"

namespace ferry {

// In the order of time: dispatch begins and ends on an attention rank; an expert rank has all rows
// and puts them in order; it has replied to all; the attention rank has all replies.
enum class Station : uint8_t { dispatch, dispatched, received, replied, combine };

struct TraceMark {
    Station station;
    int8_t micro_batch;
    int16_t layer;
    uint32_t sequence;  // of exchanges of the micro-batch: the same on all ranks
    int64_t at_ns;      // trace_now_ns()
};

struct CounterSample {
    int64_t at_ns;
    int32_t running;  // requests
    int64_t tokens;   // generated since the start
};

// Used by a rank's main thread only.
class TraceMarks {
  public:
    // From now on keeps up to `capacity` marks and as many samples, allocated here, none of those
    // before; later ones are left out. 0: keeps none.
    void record(size_t capacity) {
        capacity_ = capacity;
        marks_.clear();
        samples_.clear();
        marks_.reserve(capacity);
        samples_.reserve(capacity);
    }
    void add(Station station, int layer, int micro_batch, uint32_t sequence) {
        if (marks_.size() >= capacity_) return;
        marks_.push_back({station, static_cast<int8_t>(micro_batch), static_cast<int16_t>(layer),
                          sequence, trace_now_ns()});
    }
    void sample(int64_t running, int64_t tokens) {
        if (samples_.size() < capacity_)
            samples_.push_back({trace_now_ns(), static_cast<int32_t>(running), tokens});
    }

    const std::vector<TraceMark>& marks() const { return marks_; }
    const std::vector<CounterSample>& samples() const { return samples_; }

  private:
    size_t capacity_ = 0;
    std::vector<TraceMark> marks_;
    std::vector<CounterSample> samples_;
};

inline TraceMarks& trace_marks() {
    static TraceMarks instance;
    return instance;
}

}  // namespace ferry
