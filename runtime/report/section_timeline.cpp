// One step of a traced run, on every rank.
#include <fmt/core.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <map>

#include "runtime/report/charts.h"
#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr int kMaxRanks = 8;
constexpr size_t kMaxSpans = 4000;
constexpr size_t kMaxArrows = 120;
constexpr double kFewSpans = 60;
constexpr double kRoundingUs = 0.01;  // by which a span may seem to end behind the one around it
constexpr std::string_view kAround = "step";  // holds all others and would only cover the lane

struct Window {
    double begin_us = 0, end_us = 0;
    std::string what{};
};

// From the first span's begin to the last end.
Window whole_of(const TraceFile& trace) {
    Window whole{.begin_us = trace.spans.front().begin_us, .what = "all of it"};
    whole.end_us = whole.begin_us;
    for (const TraceSpan& span : trace.spans) whole.end_us = std::max(whole.end_us, span.end_us);
    return whole;
}

// Steps begin with the embedding of the first micro-batch on the first rank (and track: a GPU has
// one of its own) that has one: the excerpt is the step of median length, or several of them when a
// step is short in spans. Without steps: the middle 5 %.
Window choose_window(const TraceFile& trace) {
    std::vector<double> begins;
    std::pair<int, int> first{INT_MAX, INT_MAX};
    for (const TraceSpan& span : trace.spans) {
        if (span.name != "embed" || span.micro_batch > 0) continue;
        const std::pair track{span.rank, span.track};
        if (track < first) begins.clear();
        first = std::min(first, track);
        if (track == first) begins.push_back(span.begin_us);
    }
    if (begins.size() < 4) {
        const Window whole = whole_of(trace);
        const double middle = (whole.begin_us + whole.end_us) / 2,
                     half = (whole.end_us - whole.begin_us) / 40;
        return trace.spans.size() < kMaxSpans ? whole
                                              : Window{middle - half, middle + half, "its middle"};
    }
    std::vector<std::pair<double, size_t>> lengths;
    for (size_t i = 1; i + 1 < begins.size(); ++i)
        lengths.emplace_back(begins[i + 1] - begins[i], i);
    std::ranges::sort(lengths);
    const size_t step = lengths[lengths.size() / 2].second;
    const auto count = [&](const Window& window) {
        return std::ranges::count_if(trace.spans, [&](const TraceSpan& span) {
            return span.rank == first.first && span.begin_us < window.end_us &&
                   span.end_us > window.begin_us;
        });
    };
    Window window{begins[step], begins[step + 1], "a step of median length"};
    for (size_t next = step + 2;
         next < begins.size() && static_cast<double>(count(window)) < kFewSpans / 3; ++next) {
        window.end_us = begins[next];
        window.what = "a step of median length and the next ones";
    }
    return window;
}

// Ranks that are shown: all of few, else the first and last ones of them.
std::vector<int> choose_ranks(const TraceFile& trace) {
    std::vector<int> ranks;
    for (const TraceSpan& span : trace.spans)
        if (std::ranges::find(ranks, span.rank) == ranks.end()) ranks.push_back(span.rank);
    std::ranges::sort(ranks);
    if (ranks.size() > kMaxRanks)
        ranks.erase(ranks.begin() + kMaxRanks / 2, ranks.end() - kMaxRanks / 2);
    return ranks;
}

std::string tooltip_of(const TraceSpan& span) {
    std::string text =
        words_of(span.name) + ", " + format_quantity((span.end_us - span.begin_us) * 1e-6, "s");
    if (span.layer >= 0) text += fmt::format(", layer {}", span.layer);
    if (span.micro_batch >= 0) text += fmt::format(", micro-batch {}", span.micro_batch);
    if (span.bytes > 0) text += ", " + format_quantity(static_cast<double>(span.bytes), "B");
    return text;
}

using TrackOf = std::map<std::pair<int, int>, size_t>;

// Ends a window before the span that is one too many.
void cut_to_most_spans(const TraceFile& trace, const std::vector<int>& ranks, Window& window) {
    size_t num = 0;
    for (const TraceSpan& span : trace.spans) {
        if (span.end_us <= window.begin_us || span.name == kAround ||
            std::ranges::find(ranks, span.rank) == ranks.end())
            continue;
        if (span.begin_us >= window.end_us) return;
        if (++num <= kMaxSpans) continue;
        window.end_us = span.begin_us;
        window.what = "the beginning of " + window.what;
        return;
    }
}

TrackOf add_tracks(const TraceFile& trace, const std::vector<int>& ranks, const Window& window,
                   Timeline& timeline) {
    std::map<std::pair<int, int>, bool> used;
    for (const TraceSpan& span : trace.spans)
        if (span.end_us > window.begin_us && span.begin_us < window.end_us &&
            std::ranges::find(ranks, span.rank) != ranks.end())
            used[{span.rank, span.track}] = true;
    TrackOf tracks;
    for (const auto& [key, seen] : used) {
        const auto rank = trace.rank_names.find(key.first);
        const auto name = trace.track_names.find(key);
        tracks[key] = timeline.tracks.size();
        timeline.tracks.push_back(
            {rank == trace.rank_names.end() ? fmt::format("rank {}", key.first) : rank->second,
             name == trace.track_names.end() ? fmt::format("track {}", key.second) : name->second});
    }
    return tracks;
}

// From each dispatch to where its rows are received, and from there back.
void add_arrows(const TraceFile& trace, const Window& window, const TrackOf& tracks,
                Timeline& timeline) {
    std::map<int64_t, std::vector<TraceFlow>> by_id;
    for (const TraceFlow& flow : trace.flows)
        if (flow.at_us >= window.begin_us && flow.at_us <= window.end_us)
            by_id[flow.id].push_back(flow);
    for (auto& [id, flow] : by_id) {
        std::ranges::stable_sort(flow, {}, &TraceFlow::at_us);
        for (size_t i = 1; i < flow.size() && timeline.arrows.size() < kMaxArrows; ++i) {
            const auto from = tracks.find({flow[i - 1].rank, flow[i - 1].track});
            const auto to = tracks.find({flow[i].rank, flow[i].track});
            if (from == tracks.end() || to == tracks.end() || from->second == to->second) continue;
            timeline.arrows.push_back({from->second, to->second, flow[i - 1].at_us, flow[i].at_us});
        }
    }
}

// Of each span the time without the spans inside it, as the tables of phases have it: these add up.
std::vector<double> own_times(const std::vector<TraceSpan>& spans) {
    std::vector<double> own(spans.size());
    std::map<std::pair<int, int>, std::vector<size_t>> open;  // by track, one inside another
    for (size_t i = 0; i < spans.size(); ++i) {
        const TraceSpan& span = spans[i];
        own[i] = span.end_us - span.begin_us;
        std::vector<size_t>& around = open[{span.rank, span.track}];
        while (!around.empty() && spans[around.back()].end_us < span.end_us - kRoundingUs)
            around.pop_back();
        if (!around.empty()) own[around.back()] -= own[i];
        around.push_back(i);
    }
    return own;
}

Table totals_table(const TraceFile& trace) {
    std::map<std::string, std::pair<double, int64_t>> totals;
    const std::vector<double> own = own_times(trace.spans);
    for (size_t i = 0; i < trace.spans.size(); ++i) {
        totals[trace.spans[i].name].first += own[i];
        ++totals[trace.spans[i].name].second;
    }
    Table table{.columns = {{.name = "Phase", .unit = "without the phases inside"},
                            {.name = "Spans", .is_number = true},
                            {.name = "Total, all ranks", .unit = "ms", .is_number = true},
                            {.name = "Mean", .unit = "\xC2\xB5s", .is_number = true}}};
    for (const auto& [name, total] : totals)
        table.rows.push_back({{.text = name == kAround ? "between phases" : words_of(name)},
                              number_cell(static_cast<double>(total.second), 12),
                              number_cell(total.first * 1e-3),
                              number_cell(total.first / static_cast<double>(total.second))});
    return table;
}

Figure timeline_figure(const TraceResult& result) {
    const TraceFile& trace = result.trace;
    const Window whole = whole_of(trace);
    const std::vector<int> ranks = choose_ranks(trace);
    Window window = choose_window(trace);
    cut_to_most_spans(trace, ranks, window);
    Timeline timeline{.text = {.title = "Timeline: " + result.name,
                               .description = "What each rank did during one step of the run",
                               .x_label = {},
                               .y_label = {}},
                      .begin_us = window.begin_us,
                      .end_us = window.end_us,
                      .tracks = {},
                      .spans = {},
                      .arrows = {}};
    const TrackOf tracks = add_tracks(trace, ranks, window, timeline);
    for (const TraceSpan& span : trace.spans) {
        if (span.end_us <= window.begin_us || span.begin_us >= window.end_us) continue;
        if (span.name == kAround) continue;
        const auto track = tracks.find({span.rank, span.track});
        if (track == tracks.end()) continue;
        timeline.spans.push_back({track->second, span.begin_us, span.end_us, phase_style(span.name),
                                  words_of(span.name), tooltip_of(span)});
    }
    add_arrows(trace, window, tracks, timeline);
    return {
        .id = "timeline-" + slug(result.name),
        .title = "Timeline: " + result.name,
        .caption = fmt::format(
            "{} of {} traced, from {} after the start: {}. Lines lead from a dispatch to its "
            "experts and back. The whole trace opens in ui.perfetto.dev and chrome://tracing.",
            format_quantity((window.end_us - window.begin_us) * 1e-6, "s"),
            format_quantity((whole.end_us - whole.begin_us) * 1e-6, "s"),
            format_quantity(window.begin_us * 1e-6, "s"), window.what),
        .full_width = true,
        .draw = [timeline](std::string_view id, double width) { return draw(timeline, id, width); },
        .data = totals_table(trace)};
}

}  // namespace

Section timeline_section(const Results& results) {
    Section section{.id = "timeline", .title = "Timeline"};
    for (const TraceResult& result : results.traces)
        if (!result.trace.spans.empty()) section.blocks.push_back(timeline_figure(result));
    if (section.blocks.empty()) section.absent = "No trace (log.trace) was given.";
    return section;
}

}  // namespace ferry::report
