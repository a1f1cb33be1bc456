#include <algorithm>
#include <cmath>
#include <set>

#include "runtime/report/charts.h"
#include "runtime/report/legend.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr double kTrackPx = 18, kSpanPx = 15, kGroupPx = 22, kBottomPx = 44;

struct Place {
    std::vector<double> tops;        // by track
    std::vector<double> group_tops;  // by track; negative: the track goes on with its group
    double bottom = 0;
};

Place lay_out_tracks(const Timeline& chart, double top) {
    Place place;
    std::string group;
    for (size_t t = 0; t < chart.tracks.size(); ++t) {
        const bool begins = t == 0 || chart.tracks[t].group != group;
        place.group_tops.push_back(begins ? top : -1);
        if (begins) top += kGroupPx;
        group = chart.tracks[t].group;
        place.tops.push_back(top);
        top += kTrackPx;
    }
    place.bottom = top + 4;
    return place;
}

std::vector<LegendEntry> legend_of(const Timeline& chart) {
    std::vector<LegendEntry> entries;
    std::set<std::string> seen;
    for (const Timeline::Span& span : chart.spans)
        if (span.end_us > chart.begin_us && span.begin_us < chart.end_us &&
            seen.insert(span.name).second)
            entries.push_back({.name = span.name, .style = span.style});
    std::ranges::sort(entries, {}, &LegendEntry::style);
    return entries;
}

void draw_arrow(Svg& svg, double x1, double y1, double x2, double y2) {
    const double bend = std::max(8.0, std::abs(x2 - x1) / 2);
    svg.path(PathData().move(x1, y1).curve(x1 + bend, y1, x2 - bend, y2, x2, y2), "flow");
}

}  // namespace

std::string draw(const Timeline& chart, std::string_view id, double width_px) {
    const std::vector<LegendEntry> entries = legend_of(chart);
    const LegendLayout legend = lay_out_legend(entries, width_px);
    double labels = 0;
    for (const Timeline::Track& track : chart.tracks)
        labels = std::max(labels, text_width(track.name, kFontPx));
    const double left = std::min(labels + 8, width_px * 0.3), right = width_px - 6;
    const Place place = lay_out_tracks(chart, legend.height + 6);
    Svg svg(id, width_px, place.bottom + kBottomPx, chart.text.title, chart.text.description);
    draw_legend(svg, entries, legend, 0, 0);

    const double length = std::max(1e-3, chart.end_us - chart.begin_us);
    const auto x_of = [&](double us) {
        return left + std::clamp((us - chart.begin_us) / length, 0.0, 1.0) * (right - left);
    };
    const bool in_ms = length >= 5000;
    const double unit_us = in_ms ? 1000 : 1;
    double free_from = -INFINITY;
    for (const Tick& tick : make_ticks(AxisKind::linear, 0, length / unit_us,
                                       std::max(2, static_cast<int>(width_px / 110)))) {
        const double x = x_of(chart.begin_us + tick.value * unit_us);
        svg.line(x, legend.height + 6, x, place.bottom, "grid");
        const double half = text_width(tick.label, kFontPx) / 2;
        if (x - half < free_from || x + half > width_px) continue;
        svg.text(x, place.bottom + 16, tick.label, Anchor::middle, "tick");
        free_from = x + half + 8;
    }
    svg.text((left + right) / 2, place.bottom + 35, in_ms ? "ms" : "\xC2\xB5s", Anchor::middle,
             "label");
    for (size_t t = 0; t < chart.tracks.size(); ++t) {
        if (place.group_tops[t] >= 0)
            svg.text(0, place.group_tops[t] + 16, chart.tracks[t].group, Anchor::start, "group",
                     width_px);
        svg.text(left - 8, place.tops[t] + 12, chart.tracks[t].name, Anchor::end, "tick", left - 7);
        svg.rect(left, place.tops[t], right - left, kSpanPx, "lane");
    }
    for (const Timeline::Span& span : chart.spans) {
        if (span.end_us <= chart.begin_us || span.begin_us >= chart.end_us) continue;
        const double x = x_of(span.begin_us), width = x_of(span.end_us) - x;
        svg.rect(x, place.tops[span.track], std::max(0.4, width), kSpanPx, span.style + " seg",
                 span.tooltip);
    }
    for (const Timeline::Arrow& arrow : chart.arrows)
        if (arrow.from_us >= chart.begin_us && arrow.to_us <= chart.end_us)
            draw_arrow(svg, x_of(arrow.from_us), place.tops[arrow.from_track] + kSpanPx / 2,
                       x_of(arrow.to_us), place.tops[arrow.to_track] + kSpanPx / 2);
    return svg.finish();
}

}  // namespace ferry::report
