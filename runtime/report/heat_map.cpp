#include <algorithm>
#include <cmath>

#include "runtime/report/charts.h"
#include "runtime/report/svg.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr int kLevels = 24;
constexpr size_t kMaxSeparateCells = 400;  // more are drawn level by level, without tooltips
constexpr double kBelowCellsPx = 86, kLabelGapPx = 8;

double largest(const HeatMap& chart) {
    double most = 0;
    for (const auto& row : chart.values)
        for (const double value : row)
            if (std::isfinite(value)) most = std::max(most, value);
    return most;
}

std::string opacity(double level) {
    return fmt::format("fill-opacity=\"{}\"", coordinate(0.04 + 0.96 * level));
}

struct Cells {
    double left, top, width, height;
    double x(size_t column) const { return left + static_cast<double>(column) * width; }
    double y(size_t row) const { return top + static_cast<double>(row) * height; }
};

void draw_separately(Svg& svg, const HeatMap& chart, const Cells& cells, double most) {
    double widest = 0;
    for (const auto& row : chart.values)
        for (const double value : row)
            widest = std::max(widest, text_width(format_number(value, chart.digits), kFontPx));
    const bool with_values = widest + 4 < cells.width && cells.height >= 15;
    for (size_t r = 0; r < chart.values.size(); ++r)
        for (size_t c = 0; c < chart.values[r].size(); ++c) {
            const double value = chart.values[r][c];
            if (!std::isfinite(value)) continue;
            const double level = most > 0 ? std::max(0.0, value / most) : 0;
            svg.open_group("", opacity(level));
            svg.rect(cells.x(c), cells.y(r), cells.width - 1, cells.height - 1, "heat",
                     chart.row_labels[r] + ", " + chart.column_labels[c] + ": " +
                         format_number(value) +
                         (chart.unit.empty() ? "" : "\xC2\xA0" + chart.unit));
            svg.close_group();
            if (with_values)
                svg.text(cells.x(c) + cells.width / 2, cells.y(r) + cells.height / 2 + 4,
                         format_number(value, chart.digits), Anchor::middle,
                         level > 0.75 ? "hot" : "note");
        }
}

// One path for all cells of a level: a quarter of a million cells stay a small file.
void draw_by_level(Svg& svg, const HeatMap& chart, const Cells& cells, double most) {
    std::vector<PathData> paths(kLevels + 1);
    for (size_t r = 0; r < chart.values.size(); ++r)
        for (size_t c = 0; c < chart.values[r].size(); ++c) {
            const double value = chart.values[r][c];
            if (!std::isfinite(value) || most <= 0) continue;
            const auto level =
                static_cast<size_t>(std::lround(std::max(0.0, value / most) * kLevels));
            paths[level].box(cells.x(c), cells.y(r), cells.width, cells.height);
        }
    for (size_t level = 0; level < paths.size(); ++level)
        if (!paths[level].text().empty())
            svg.path(paths[level], "heat", {}, opacity(static_cast<double>(level) / kLevels));
}

// Every label that has room.
void draw_labels(Svg& svg, const HeatMap& chart, const Cells& cells) {
    double free_from = -INFINITY;
    for (size_t r = 0; r < chart.row_labels.size(); ++r) {
        const double y = cells.y(r) + cells.height / 2;
        if (y - 7 < free_from) continue;
        svg.text(cells.left - kLabelGapPx, y + 4, chart.row_labels[r], Anchor::end, "tick",
                 cells.left - kLabelGapPx + 0.5);
        free_from = y + 7;
    }
    free_from = -INFINITY;
    const double bottom = cells.y(chart.values.size());
    for (size_t c = 0; c < chart.column_labels.size(); ++c) {
        const double x = cells.x(c) + cells.width / 2;
        const double half = text_width(chart.column_labels[c], kFontPx) / 2;
        if (x - half < free_from || x + half > svg.width()) continue;
        svg.text(x, bottom + 16, chart.column_labels[c], Anchor::middle, "tick");
        free_from = x + half + 8;
    }
    svg.text(0, 12, chart.text.y_label, Anchor::start, "label", svg.width());
    const double half = text_width(chart.text.x_label, kFontPx) / 2;
    const double middle = (cells.left + cells.x(chart.column_labels.size())) / 2;
    svg.text(std::clamp(middle, half, std::max(half, svg.width() - half)), bottom + 35,
             chart.text.x_label, Anchor::middle, "label", svg.width());
}

void draw_key(Svg& svg, double left, double y, double most, const std::string& unit) {
    constexpr double kStepPx = 6;
    const double begin = left + text_width("0", kFontPx) + 6;
    svg.text(left, y + 11, "0", Anchor::start, "tick");
    for (int level = 0; level <= kLevels; ++level) {
        svg.open_group("", opacity(static_cast<double>(level) / kLevels));
        svg.rect(begin + level * kStepPx, y, kStepPx + 0.2, 14, "heat");
        svg.close_group();
    }
    svg.text(begin + (kLevels + 1) * kStepPx + 6, y + 11,
             format_number(most, 4) + (unit.empty() ? "" : "\xC2\xA0" + unit), Anchor::start,
             "tick");
}

}  // namespace

std::string draw(const HeatMap& chart, std::string_view id, double width_px) {
    double labels = 0;
    for (const std::string& label : chart.row_labels)
        labels = std::max(labels, text_width(label, kFontPx));
    labels = std::min(labels, width_px * 0.35);
    const size_t rows = std::max<size_t>(1, chart.values.size());
    const size_t columns = std::max<size_t>(1, chart.column_labels.size());
    Cells cells{.left = labels + kLabelGapPx, .top = 24, .width = 0, .height = 0};
    cells.width = std::min((width_px - cells.left - 2) / static_cast<double>(columns), 90.0);
    cells.height = std::clamp(360.0 / static_cast<double>(rows), 5.0, 24.0);
    const double bottom = cells.y(rows);
    Svg svg(id, width_px, bottom + kBelowCellsPx - 14, chart.text.title, chart.text.description);
    const double most = largest(chart);
    if (rows * columns <= kMaxSeparateCells)
        draw_separately(svg, chart, cells, most);
    else
        draw_by_level(svg, chart, cells, most);
    draw_labels(svg, chart, cells);
    draw_key(svg, cells.left, bottom + 50, most, chart.unit);
    return svg.finish();
}

}  // namespace ferry::report
