#include "runtime/report/trace_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "runtime/json_text.h"

namespace ferry::report {
namespace {

[[noreturn]] void refuse(const std::string& name, size_t event, const char* what) {
    throw Error(ErrorKind::input, "{}: traceEvents[{}]: {}", name, event, what);
}

template <typename T>
T get(const Json& event, const char* key, T otherwise) {
    const auto found = event.find(key);
    return found == event.end() || !found->is_number() ? otherwise : found->get<T>();
}

std::string text_of(const Json& event, const char* key) {
    const auto found = event.find(key);
    return found == event.end() || !found->is_string() ? "" : found->get<std::string>();
}

void take_event(const Json& event, const std::string& name, size_t idx, TraceFile& trace) {
    const std::string phase = text_of(event, "ph");
    if (phase.size() != 1) refuse(name, idx, "ph: must be one character");
    const int rank = get(event, "pid", 0), track = get(event, "tid", 0);
    const Json args = event.value("args", Json::object());
    if (phase == "M") {
        const std::string what = text_of(event, "name");
        if (what == "process_name") trace.rank_names[rank] = text_of(args, "name");
        if (what == "thread_name") trace.track_names[{rank, track}] = text_of(args, "name");
        return;
    }
    if (!event.contains("ts") || !event["ts"].is_number())
        refuse(name, idx, "ts: must be a number");
    const double at_us = event["ts"].get<double>();
    if (phase == "X") {
        const double length_us = get(event, "dur", -1.0);
        if (length_us < 0) refuse(name, idx, "dur: must be a number, not below 0");
        trace.spans.push_back({rank, track, at_us, at_us + length_us, text_of(event, "name"),
                               get(args, "layer", -1), get(args, "micro_batch", -1),
                               get(args, "bytes", int64_t{0})});
    } else if (phase == "s" || phase == "t" || phase == "f") {
        trace.flows.push_back({rank, track, at_us, get(event, "id", int64_t{0}), phase[0]});
    }
}

}  // namespace

TraceFile parse_trace(const std::string& text, const std::string& name) {
    TraceFile trace;
    size_t num_events = 0;
    bool in_events = false;
    // Events are dropped as soon as they are taken: a trace may be larger than what memory holds of
    // parsed JSON.
    const auto on_event = [&](int depth, Json::parse_event_t kind, Json& value) {
        if (depth == 1 && kind == Json::parse_event_t::key) in_events = value == "traceEvents";
        if (!in_events || depth != 2 || kind != Json::parse_event_t::object_end) return true;
        take_event(value, name, num_events++, trace);
        return false;
    };
    try {
        const Json json = Json::parse(text, on_event);
        if (!json.is_object() || !json.contains("traceEvents"))
            throw Error(ErrorKind::input, "{}: has no traceEvents", name);
    } catch (const Json::exception& error) {
        throw Error(ErrorKind::input, "{}: not a valid trace: {}", name, in_quotes(error.what()));
    }
    // What lies inside another span comes after it.
    std::ranges::stable_sort(trace.spans, [](const TraceSpan& a, const TraceSpan& b) {
        return a.begin_us != b.begin_us ? a.begin_us < b.begin_us : a.end_us > b.end_us;
    });
    return trace;
}

}  // namespace ferry::report
