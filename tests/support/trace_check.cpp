#include "tests/support/trace_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace ferry::testing {
namespace {

using Json = nlohmann::json;
using Track = std::pair<int, int>;  // rank, track

constexpr double kRoundingUs = 0.002;  // times have three digits

struct Span {
    double begin, end;
};
struct Flow {
    char phase;
    Track track;
    double at;
};

class Checker {
  public:
    TraceCheck run(const std::string& text) {
        const Json json = Json::parse(text, nullptr, false);
        if (json.is_discarded()) {
            problem("not JSON");
            return result_;
        }
        if (!has_keys(json, "the file", {"displayTimeUnit", "otherData", "traceEvents"}))
            return result_;
        read_clocks(json["otherData"]);
        size_t idx = 0;
        for (const Json& event : json["traceEvents"]) read_event(event, idx++);
        check_names();
        for (auto& [track, spans] : spans_) check_nesting(track, spans);
        for (const auto& [id, flow] : flows_) check_flow(id, flow);
        result_.num_ranks = static_cast<int>(ranks_.size());
        result_.num_flows = static_cast<int>(flows_.size());
        return result_;
    }

  private:
    void problem(const std::string& what) {
        if (result_.problems.size() < 20) result_.problems.push_back(what);
    }
    bool has_keys(const Json& json, const std::string& where, const std::set<std::string>& keys) {
        std::set<std::string> found;
        if (json.is_object())
            for (const auto& [key, value] : json.items()) found.insert(key);
        if (found == keys) return true;
        problem(fmt::format("{} has keys {} instead of {}", where, fmt::join(found, " "),
                            fmt::join(keys, " ")));
        return false;
    }
    bool are_numbers(const Json& event, const std::string& where,
                     std::initializer_list<const char*> keys) {
        for (const char* key : keys)
            if (!event[key].is_number() || !std::isfinite(event[key].get<double>())) {
                problem(fmt::format("{}: {} is no number", where, key));
                return false;
            }
        return true;
    }

    void read_clocks(const Json& other) {
        if (!has_keys(other, "otherData", {"ranks"})) return;
        for (const Json& rank : other["ranks"])
            if (has_keys(rank, "otherData.ranks",
                         {"rank", "host", "clock_drift_ppm", "clock_error_us", "dropped_events"}))
                clock_error_us_[rank["rank"].get<int>()] = rank["clock_error_us"].get<double>();
    }

    void read_event(const Json& event, size_t idx) {
        const std::string where = fmt::format("event {}", idx);
        if (!event.is_object() || !event.contains("ph") || !event["ph"].is_string() ||
            !event.contains("name") || !event["name"].is_string())
            return problem(where + " has no ph and name");
        const auto phase = event["ph"].get<std::string>();
        if (phase == "M")
            read_name(event, where);
        else if (phase == "X")
            read_span(event, where);
        else if (phase == "s" || phase == "t" || phase == "f")
            read_flow(event, phase[0], where);
        else if (phase == "C")
            read_counter(event, where);
        else
            problem(where + " is of unknown kind " + phase);
    }

    void read_name(const Json& event, const std::string& where) {
        const auto name = event["name"].get<std::string>();
        const bool of_track = name == "thread_name";
        std::set<std::string> keys{"ph", "name", "pid", "args"};
        if (of_track) keys.insert("tid");
        if (!has_keys(event, where, keys) || !are_numbers(event, where, {"pid"})) return;
        const int rank = event["pid"].get<int>();
        if (name == "process_sort_index") {
            if (!event["args"].contains("sort_index")) problem(where + " has no sort_index");
            return;
        }
        if (name != "process_name" && !of_track) return problem(where + " names nothing: " + name);
        if (!event["args"].contains("name") || !event["args"]["name"].is_string())
            return problem(where + " has no name in args");
        const bool is_new = of_track ? named_tracks_.insert({rank, event["tid"].get<int>()}).second
                                     : named_ranks_.insert(rank).second;
        if (!is_new) problem(where + " names again what has a name");
    }

    void read_span(const Json& event, const std::string& where) {
        if (!has_keys(event, where, {"ph", "name", "pid", "tid", "ts", "dur", "args"}) ||
            !are_numbers(event, where, {"pid", "tid", "ts", "dur"}))
            return;
        const double begin = event["ts"].get<double>(), length = event["dur"].get<double>();
        if (length < 0) problem(where + " ends before it begins");
        if (begin < 0) problem(where + " begins before the trace");
        if (!event["args"].is_object()) problem(where + ": args is no object");
        const Track track{event["pid"].get<int>(), event["tid"].get<int>()};
        ranks_.insert(track.first);
        spans_[track].push_back({begin, begin + length});
        ++result_.num_spans;
    }

    void read_flow(const Json& event, char phase, const std::string& where) {
        std::set<std::string> keys{"ph", "name", "cat", "pid", "tid", "ts", "id"};
        if (phase != 's') keys.insert("bp");
        if (!has_keys(event, where, keys) || !are_numbers(event, where, {"pid", "tid", "ts", "id"}))
            return;
        if (phase != 's' && event["bp"] != "e") problem(where + ": bp is not e");
        flows_[event["id"].get<int64_t>()].push_back(
            {phase, {event["pid"].get<int>(), event["tid"].get<int>()}, event["ts"].get<double>()});
    }

    void read_counter(const Json& event, const std::string& where) {
        if (!has_keys(event, where, {"ph", "name", "pid", "ts", "args"}) ||
            !are_numbers(event, where, {"pid", "ts"}))
            return;
        if (!event["args"].is_object() || event["args"].empty())
            return problem(where + ": args is empty");
        for (const auto& [key, value] : event["args"].items())
            if (!value.is_number()) problem(where + ": " + key + " is no number");
        double& last = counters_[{event["pid"].get<int>(), event["name"].get<std::string>()}];
        if (event["ts"].get<double>() < last) problem(where + " goes back in time");
        last = event["ts"].get<double>();
        ++result_.num_counters;
    }

    void check_names() {
        for (const auto& [track, spans] : spans_) {
            if (!named_ranks_.contains(track.first))
                problem(fmt::format("rank {} has no name", track.first));
            if (!named_tracks_.contains(track))
                problem(fmt::format("track {} of rank {} has no name", track.second, track.first));
        }
    }

    void check_nesting(const Track& track, std::vector<Span>& spans) {
        std::ranges::sort(spans, [](const Span& a, const Span& b) {
            return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
        });
        std::vector<Span> open;
        for (const Span& span : spans) {
            while (!open.empty() && open.back().end <= span.begin + kRoundingUs) open.pop_back();
            if (!open.empty() && span.end > open.back().end + kRoundingUs)
                problem(fmt::format("rank {} track {}: {} to {} us overlaps {} to {}", track.first,
                                    track.second, span.begin, span.end, open.back().begin,
                                    open.back().end));
            open.push_back(span);
        }
    }

    void check_flow(int64_t id, const std::vector<Flow>& flow) {
        const auto num = [&](char phase) { return std::ranges::count(flow, phase, &Flow::phase); };
        if (num('s') != 1 || num('t') < 1 || num('f') != 1)
            return problem(fmt::format("flow {} has {} begins, {} steps and {} ends", id, num('s'),
                                       num('t'), num('f')));
        const Flow& begin = *std::ranges::find(flow, 's', &Flow::phase);
        const Flow& end = *std::ranges::find(flow, 'f', &Flow::phase);
        if (begin.track.first != end.track.first)
            problem(fmt::format("flow {} ends on another rank than it began", id));
        for (const Flow& step : flow) {
            const double off = clock_error_us_[begin.track.first] +
                               clock_error_us_[step.track.first] + kRoundingUs;
            if (step.at < begin.at - off || step.at > end.at + off)
                problem(fmt::format("flow {}: {} at {} us is not between its begin {} and end {}",
                                    id, step.phase, step.at, begin.at, end.at));
            if (!lies_in_span(step))
                problem(fmt::format("flow {}: {} at {} us lies in no span of rank {}", id,
                                    step.phase, step.at, step.track.first));
        }
    }

    // Spans are sorted by begin (check_nesting).
    bool lies_in_span(const Flow& flow) const {
        const auto found = spans_.find(flow.track);
        if (found == spans_.end()) return false;
        const std::vector<Span>& spans = found->second;
        auto after = std::ranges::upper_bound(spans, flow.at + kRoundingUs, {}, &Span::begin);
        for (int i = 0; i < 8 && after != spans.begin(); ++i)  // nesting is not deep
            if ((--after)->end >= flow.at - kRoundingUs) return true;
        return false;
    }

    TraceCheck result_;
    std::map<int, double> clock_error_us_;
    std::set<int> ranks_, named_ranks_;
    std::set<Track> named_tracks_;
    std::map<Track, std::vector<Span>> spans_;
    std::map<std::pair<int, std::string>, double> counters_;
    std::map<int64_t, std::vector<Flow>> flows_;
};

}  // namespace

TraceCheck check_trace(const std::string& text) {
    return Checker().run(text);
}

}  // namespace ferry::testing
