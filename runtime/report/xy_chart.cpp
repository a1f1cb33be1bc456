#include <algorithm>
#include <cmath>

#include "runtime/report/charts.h"
#include "runtime/report/legend.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr double kTopPx = 22, kTickGapPx = 8, kBelowFramePx = 44, kRightPx = 18, kMarkerPx = 3.8;

struct Frame {
    double left = 0, right = 0, top = 0, bottom = 0;
    Axis x, y;

    double x_of(double value) const { return left + x.position(value) * (right - left); }
    double y_of(double value) const { return bottom - y.position(value) * (bottom - top); }
};

Axis fit_axis(const XyChart& chart, bool of_x, int wanted) {
    std::vector<double> values;
    for (const Series& series : chart.series)
        for (const Point& point : series.points) {
            values.push_back(of_x ? point.x : point.y);
            if (of_x) continue;
            if (point.low) values.push_back(*point.low);
            if (point.high) values.push_back(*point.high);
        }
    return of_x ? Axis::fit(chart.x_kind, values, chart.x_from_zero, wanted)
                : Axis::fit(chart.y_kind, values, chart.y_from_zero, wanted);
}

std::vector<LegendEntry> legend_of(const XyChart& chart) {
    std::vector<LegendEntry> entries;
    size_t idx = 0;
    for (const Series& series : chart.series) {
        using Mark = LegendEntry::Mark;
        entries.push_back({.mark = series.is_reference ? Mark::dashes : Mark::line,
                           .name = series.name,
                           .style = series.is_reference ? "" : series_style(idx),
                           .shape = idx});
        idx += series.is_reference ? 0 : 1;
    }
    return entries;
}

void draw_grid(Svg& svg, const XyChart& chart, const Frame& frame) {
    for (const Tick& tick : frame.y.ticks()) {
        const double y = frame.y_of(tick.value);
        svg.line(frame.left, y, frame.right, y, "grid");
        svg.text(frame.left - kTickGapPx, y + 4, tick.label, Anchor::end, "tick");
    }
    svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis");
    std::vector<Tick> ticks = frame.x.ticks();
    if (!chart.x_ticks.empty()) {
        ticks.clear();
        for (const double value : chart.x_ticks) ticks.push_back({value, format_number(value, 7)});
    }
    double free_from = -INFINITY;
    for (const Tick& tick : ticks) {
        const double x = frame.x_of(tick.value);
        const double half = text_width(tick.label, kFontPx) / 2;
        svg.line(x, frame.bottom, x, frame.bottom + 4, "axis");
        if (x - half < free_from) continue;
        svg.text(x, frame.bottom + 18, tick.label, Anchor::middle, "tick");
        free_from = x + half + 8;
    }
    svg.text((frame.left + frame.right) / 2, frame.bottom + 37, chart.text.x_label, Anchor::middle,
             "label", svg.width());
    svg.text(0, 12, chart.text.y_label, Anchor::start, "label", svg.width());
}

void draw_band(Svg& svg, const Series& series, const Frame& frame, const std::string& style) {
    PathData path;
    for (const Point& point : series.points) {
        if (!point.low || !point.high) return;
        path.go(frame.x_of(point.x), frame.y_of(*point.high));
    }
    for (auto point = series.points.rbegin(); point != series.points.rend(); ++point)
        path.go(frame.x_of(point->x), frame.y_of(*point->low));
    if (series.points.size() > 1) svg.path(path.close(), style + " band");
}

std::string tooltip_of(const Series& series, const Point& point) {
    std::string text = series.name + ": " + format_number(point.y);
    if (point.low && point.high)
        text += " (" + format_number(*point.low) + " to " + format_number(*point.high) + ")";
    text += " at " + format_number(point.x);
    return point.label.empty() ? text : text + ", " + point.label;
}

void draw_line(Svg& svg, const Series& series, const Frame& frame, const std::string& style) {
    PathData path;
    for (const Point& point : series.points) path.go(frame.x_of(point.x), frame.y_of(point.y));
    if (series.points.size() > 1) svg.path(path, style);
}

struct Box {
    double left, right, top, bottom;
    bool meets(const Box& other) const {
        return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
    }
};

// Labels of points where they cover no marker and no other label; the rest is in tooltips.
void draw_labels(Svg& svg, const XyChart& chart, const Frame& frame) {
    std::vector<Box> taken;
    for (const Series& series : chart.series)
        for (const Point& point : series.points) {
            const double x = frame.x_of(point.x), y = frame.y_of(point.y);
            taken.push_back({x - 4, x + 4, y - 4, y + 4});
        }
    for (const Series& series : chart.series)
        for (const Point& point : series.points) {
            if (point.label.empty()) continue;
            const double x = frame.x_of(point.x), y = frame.y_of(point.y);
            const double width = text_width(point.label, kFontPx);
            const Box places[] = {{x + 7, x + 7 + width, y - 7, y + 7},
                                  {x - 7 - width, x - 7, y - 7, y + 7},
                                  {x - width / 2, x + width / 2, y - 21, y - 7},
                                  {x - width / 2, x + width / 2, y + 7, y + 21}};
            for (const Box& box : places) {
                if (box.left < frame.left || box.right > svg.width() || box.top < frame.top - 6 ||
                    box.bottom > frame.bottom)
                    continue;
                if (std::any_of(taken.begin(), taken.end(),
                                [&](const Box& other) { return box.meets(other); }))
                    continue;
                svg.text(box.left, box.bottom - 3, point.label, Anchor::start, "note point");
                taken.push_back(box);
                break;
            }
        }
}

}  // namespace

std::string series_style(size_t idx) {
    return fmt::format("s{}{}", idx % 8 + 1, idx >= 8 ? " again" : "");
}

std::string left_out_note(const std::vector<Series>& series) {
    const auto num = static_cast<size_t>(
        std::ranges::count(series, false, [](const Series& one) { return one.is_reference; }));
    if (num <= kMaxSeries) return "";
    return fmt::format(" The first {} of {} cases are drawn.", kMaxSeries, num);
}

std::string draw(const XyChart& given, std::string_view id, double width_px) {
    XyChart chart = given;
    size_t num = 0;
    std::erase_if(chart.series,
                  [&](const Series& one) { return !one.is_reference && ++num > kMaxSeries; });
    if (chart.joined)
        for (Series& series : chart.series)
            std::ranges::stable_sort(series.points, {}, [](const Point& point) { return point.x; });
    const std::vector<LegendEntry> entries = legend_of(chart);
    const bool with_legend = entries.size() > 1;
    const LegendLayout legend = with_legend ? lay_out_legend(entries, width_px) : LegendLayout{};
    const double plot_px = std::clamp(width_px * 0.5, 190.0, 300.0);

    Frame frame{.x = fit_axis(chart, true, static_cast<int>(width_px / 70)),
                .y = fit_axis(chart, false, 5)};
    double label_px = 0;
    for (const Tick& tick : frame.y.ticks())
        label_px = std::max(label_px, text_width(tick.label, kFontPx));
    frame.left = label_px + kTickGapPx;
    frame.right = width_px - kRightPx;
    frame.top = kTopPx + 6;
    frame.bottom = frame.top + plot_px;

    const double height = frame.bottom + kBelowFramePx + (with_legend ? legend.height + 6 : 0);
    Svg svg(id, width_px, height, chart.text.title, chart.text.description);
    draw_grid(svg, chart, frame);
    for (size_t i = 0; i < chart.series.size(); ++i)
        if (!chart.series[i].is_reference) draw_band(svg, chart.series[i], frame, entries[i].style);
    for (size_t i = 0; i < chart.series.size(); ++i) {
        const Series& series = chart.series[i];
        if (chart.joined || series.is_reference)
            draw_line(svg, series, frame,
                      series.is_reference ? "ideal" : entries[i].style + " curve");
        if (series.is_reference) continue;
        for (const Point& point : series.points)
            svg.path(
                marker_path(entries[i].shape, frame.x_of(point.x), frame.y_of(point.y), kMarkerPx),
                entries[i].style + " mark", tooltip_of(series, point));
    }
    draw_labels(svg, chart, frame);
    if (with_legend) draw_legend(svg, entries, legend, 0, frame.bottom + kBelowFramePx + 4);
    return svg.finish();
}

}  // namespace ferry::report
