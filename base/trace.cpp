#include "base/trace.h"

namespace ferry {

std::string_view to_string(Zone zone) {
    switch (zone) {
        case Zone::step:
            return "step";
        case Zone::schedule:
            return "schedule";
        case Zone::embed:
            return "embed";
        case Zone::attention:
            return "attention";
        case Zone::gate:
            return "gate";
        case Zone::norm:
            return "norm";
        case Zone::pack:
            return "pack";
        case Zone::dispatch_wait:
            return "dispatch_wait";
        case Zone::experts:
            return "experts";
        case Zone::reply:
            return "reply";
        case Zone::combine_wait:
            return "combine_wait";
        case Zone::combine:
            return "combine";
        case Zone::shared:
            return "shared";
        case Zone::dense:
            return "dense";
        case Zone::tensor_parallel:
            return "tensor_parallel";
        case Zone::head:
            return "head";
        case Zone::sample:
            return "sample";
        case Zone::output:
            return "output";
        case Zone::graph:
            return "graph";
        case Zone::idle:
            return "idle";
        case Zone::load:
            return "load";
        case Zone::num_zones:
            break;
    }
    return "?";
}

void Trace::record_events(size_t capacity) {
    capacity_ = capacity;
    dropped_events_ = 0;
    events_.clear();
    events_.reserve(capacity);
}

void Trace::add(const TraceEvent& event, int64_t flops, int64_t inside_ns) {
    const int64_t time_ns = event.end_ns - event.begin_ns;
    inside_ns_ += time_ns;
    ZoneTotals& total = totals_[static_cast<size_t>(event.zone)];
    ++total.count;
    total.time_ns += time_ns;
    total.self_ns += time_ns - inside_ns;
    total.bytes += event.bytes;
    total.flops += flops;
    if (events_.size() < capacity_)
        events_.push_back(event);
    else if (capacity_ > 0)
        ++dropped_events_;
}

Trace& trace() {
    static Trace instance;
    return instance;
}

int64_t trace_now_ns() {
    static const auto epoch = std::chrono::steady_clock::now();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                                epoch)
        .count();
}

}  // namespace ferry
