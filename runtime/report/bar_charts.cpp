#include <algorithm>
#include <cmath>

#include "runtime/report/charts.h"
#include "runtime/report/legend.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr double kRowPx = 26, kBarPx = 18, kAxisPx = 40, kGapPx = 8;

double widest(const auto& rows, double limit) {
    double width = 0;
    for (const auto& row : rows) width = std::max(width, text_width(row.label, kFontPx));
    return std::min(width, limit);
}

double sum_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += std::isfinite(value) && value > 0 ? value : 0;
    return sum;
}

// Bars below their labels on narrow pictures, beside them on wide ones.
struct BarLayout {
    bool stacked_labels = false;
    double left = 0, right = 0, top = 0, row_px = kRowPx;

    double bar_top(size_t row) const {
        return top + static_cast<double>(row) * row_px + row_px - kBarPx - 4;
    }
    double bottom(size_t rows) const { return top + static_cast<double>(rows) * row_px; }
};

BarLayout lay_out_bars(const auto& rows, double width_px, double right_px) {
    const double labels = widest(rows, width_px * 0.4);
    BarLayout layout;
    layout.stacked_labels = width_px < 420 && labels > width_px * 0.25;
    layout.left = layout.stacked_labels ? 0 : labels + kGapPx;
    layout.right = width_px - right_px;
    layout.row_px = layout.stacked_labels ? kRowPx + 16 : kRowPx;
    return layout;
}

void draw_row_label(Svg& svg, const BarLayout& layout, size_t row, const std::string& label) {
    if (layout.stacked_labels)
        svg.text(0, layout.bar_top(row) - 5, label, Anchor::start, "label", svg.width());
    else
        svg.text(layout.left - kGapPx, layout.bar_top(row) + kBarPx / 2 + 4, label, Anchor::end,
                 "label", layout.left - kGapPx + 0.5);
}

void draw_x_axis(Svg& svg, const Axis& axis, const BarLayout& layout, double bottom,
                 const std::string& label) {
    double free_from = -INFINITY;
    for (const Tick& tick : axis.ticks()) {
        const double x = layout.left + axis.position(tick.value) * (layout.right - layout.left);
        svg.line(x, layout.top, x, bottom, "grid");
        double half = text_width(tick.label, kFontPx) / 2;
        const double at = std::clamp(x, half, svg.width() - half);
        if (at - half < free_from) continue;
        svg.text(at, bottom + 16, tick.label, Anchor::middle, "tick");
        free_from = at + half + 8;
    }
    svg.text((layout.left + layout.right) / 2, bottom + 34, label, Anchor::middle, "label",
             svg.width());
}

}  // namespace

std::string phase_style(std::string_view phase) {
    static constexpr std::string_view kKnown[] = {
        "schedule",        "step",    "embed",  "attention",    "gate",    "norm",   "pack",
        "dispatch_wait",   "experts", "reply",  "combine_wait", "combine", "shared", "dense",
        "tensor_parallel", "head",    "sample", "output",       "idle",    "load",   "exchange"};
    const bool known = std::ranges::find(kKnown, phase) != std::end(kKnown);
    return known ? fmt::format("p-{}", phase) : "p-other";
}

std::string draw(const StackedBars& chart, std::string_view id, double width_px) {
    std::vector<LegendEntry> entries;
    for (const StackedBars::Part& part : chart.parts)
        entries.push_back({.name = part.name, .style = part.style});
    const bool with_legend = entries.size() > 1;
    const LegendLayout legend = with_legend ? lay_out_legend(entries, width_px) : LegendLayout{};
    std::vector<double> sums;
    double totals_px = 12;
    for (const StackedBars::Row& row : chart.rows) {
        sums.push_back(sum_of(row.values));
        if (chart.with_totals)
            totals_px =
                std::max(totals_px, text_width(format_number(sums.back(), 3), kFontPx) + 10);
    }
    BarLayout layout = lay_out_bars(chart.rows, width_px, totals_px);
    layout.top = with_legend ? legend.height + 10 : 4;
    const double bottom = layout.bottom(chart.rows.size());
    const int wanted = std::max(2, static_cast<int>((layout.right - layout.left) / 90));
    const Axis axis = Axis::fit(AxisKind::linear, sums, true, wanted);

    Svg svg(id, width_px, bottom + kAxisPx, chart.text.title, chart.text.description);
    if (with_legend) draw_legend(svg, entries, legend, 0, 0);
    draw_x_axis(svg, axis, layout, bottom, chart.text.x_label);
    for (size_t r = 0; r < chart.rows.size(); ++r) {
        const StackedBars::Row& row = chart.rows[r];
        draw_row_label(svg, layout, r, row.label);
        double begin = 0;
        const auto x_of = [&](double value) {
            return layout.left + axis.position(value) * (layout.right - layout.left);
        };
        for (size_t p = 0; p < chart.parts.size() && p < row.values.size(); ++p) {
            const double value = row.values[p];
            if (!(value > 0) || !std::isfinite(value)) continue;
            const double x = x_of(begin);
            svg.rect(x, layout.bar_top(r), std::max(0.3, x_of(begin + value) - x), kBarPx,
                     chart.parts[p].style + " seg",
                     row.label + ", " + chart.parts[p].name + ": " + format_number(value) +
                         (chart.unit.empty() ? "" : "\xC2\xA0" + chart.unit));
            begin += value;
        }
        svg.line(layout.left, layout.bar_top(r) - 2, layout.left, layout.bar_top(r) + kBarPx + 2,
                 "axis");
        if (chart.with_totals)
            svg.text(x_of(begin) + 6, layout.bar_top(r) + kBarPx / 2 + 4, format_number(sums[r], 3),
                     Anchor::start, "note");
    }
    return svg.finish();
}

std::string draw(const DifferenceBars& chart, std::string_view id, double width_px) {
    double extreme = 0.02, label_px = 0;
    for (const DifferenceBars::Row& row : chart.rows) {
        if (!std::isfinite(row.change)) continue;
        extreme = std::max({extreme, std::abs(row.change), std::min(row.noise, 1.0)});
        label_px = std::max(label_px, text_width(format_percent_change(row.change), kFontPx));
    }
    extreme = std::min(extreme, 2.0) * 100;
    BarLayout layout = lay_out_bars(chart.rows, width_px, label_px + 10);
    layout.top = 4;
    const double labels_left = layout.left + label_px + 10;
    const double bottom = layout.bottom(chart.rows.size());
    const Axis axis = Axis::fit(AxisKind::linear, {-extreme, extreme}, true, 4);
    Svg svg(id, width_px, bottom + kAxisPx, chart.text.title, chart.text.description);
    BarLayout inner = layout;
    inner.left = labels_left;
    draw_x_axis(svg, axis, inner, bottom, chart.text.x_label);
    const auto x_of = [&](double change) {
        return inner.left + axis.position(change * 100) * (inner.right - inner.left);
    };
    for (size_t r = 0; r < chart.rows.size(); ++r) {
        const DifferenceBars::Row& row = chart.rows[r];
        draw_row_label(svg, layout, r, row.label);
        if (!std::isfinite(row.change)) continue;
        const double y = layout.bar_top(r);
        svg.rect(x_of(-row.noise), y - 1, x_of(row.noise) - x_of(-row.noise), kBarPx + 2, "noise",
                 fmt::format("noise: \xC2\xB1{}\xC2\xA0%", format_number(row.noise * 100, 3)));
        const double zero = x_of(0), end = x_of(row.change);
        const char* style = row.verdict == 0 ? "neutral" : row.verdict > 0 ? "better" : "worse";
        svg.rect(std::min(zero, end), y + 3, std::max(1.0, std::abs(end - zero)), kBarPx - 6,
                 std::string(style) + " seg", row.label + ": " + format_percent_change(row.change));
        const bool left = row.change < 0;
        svg.text(end + (left ? -6 : 6), y + kBarPx / 2 + 4, format_percent_change(row.change),
                 left ? Anchor::end : Anchor::start, "note");
    }
    svg.line(x_of(0), layout.top, x_of(0), bottom, "axis");
    return svg.finish();
}

}  // namespace ferry::report
