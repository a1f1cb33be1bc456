#include "runtime/report/legend.h"

#include <algorithm>

#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr double kMarkPx = 14, kMarkGapPx = 6, kEntryGapPx = 16, kLinePx = 18;

std::string polygon(std::initializer_list<std::pair<double, double>> corners, double x, double y,
                    double radius) {
    PathData path;
    for (const auto& [dx, dy] : corners) path.go(x + dx * radius, y + dy * radius);
    return path.close().text();
}

}  // namespace

std::string marker_path(size_t shape, double x, double y, double radius) {
    switch (shape % 4) {
        case 1:
            return polygon({{-0.9, -0.9}, {0.9, -0.9}, {0.9, 0.9}, {-0.9, 0.9}}, x, y, radius);
        case 2:
            return polygon({{0, -1.2}, {1.1, 0.8}, {-1.1, 0.8}}, x, y, radius);
        case 3:
            return polygon({{0, -1.25}, {1.25, 0}, {0, 1.25}, {-1.25, 0}}, x, y, radius);
        default:
            return PathData().circle(x, y, radius).text();
    }
}

LegendLayout lay_out_legend(const std::vector<LegendEntry>& entries, double width_px) {
    LegendLayout layout;
    double x = 0, y = 0;
    for (const LegendEntry& entry : entries) {
        const double room = width_px - kMarkPx - kMarkGapPx;
        const double text = std::min(text_width(entry.name, kFontPx), room);
        const double width = kMarkPx + kMarkGapPx + text;
        if (x > 0 && x + width > width_px) {
            x = 0;
            y += kLinePx;
        }
        layout.places.push_back({x, y, text});
        x += width + kEntryGapPx;
    }
    layout.height = entries.empty() ? 0 : y + kLinePx;
    return layout;
}

void draw_legend(Svg& svg, const std::vector<LegendEntry>& entries, const LegendLayout& layout,
                 double x, double y) {
    for (size_t i = 0; i < entries.size(); ++i) {
        const LegendEntry& entry = entries[i];
        const LegendLayout::Place& place = layout.places[i];
        const double left = x + place.x, middle = y + place.y + kLinePx / 2;
        if (entry.mark == LegendEntry::Mark::box) {
            svg.rect(left + 1, middle - 6, 12, 12, entry.style + " swatch");
        } else {
            const bool dashed = entry.mark == LegendEntry::Mark::dashes;
            svg.line(left, middle, left + kMarkPx, middle,
                     entry.style + (dashed ? " ideal" : " curve"));
            if (!dashed)
                svg.path(marker_path(entry.shape, left + kMarkPx / 2, middle, 3.5),
                         entry.style + " mark");
        }
        svg.text(left + kMarkPx + kMarkGapPx, middle + 4, entry.name, Anchor::start, "label",
                 place.text_width + 0.5);
    }
}

}  // namespace ferry::report
