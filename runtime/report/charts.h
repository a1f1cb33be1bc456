// The plots of reports. Each is a plain description that draws itself as inline SVG at a width in
// pixels: wide for desks and paper, narrow for phones. They are readable without scripts: labels,
// units, a legend that also tells by shape or hatching what colour alone would not.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/report/axis.h"

namespace ferry::report {

struct ChartText {
    std::string title;        // for screen readers; the page prints its own caption
    std::string description;  // what it shows, in a sentence
    std::string x_label, y_label;
};

struct Point {
    double x = 0, y = 0;
    std::optional<double> low{}, high{};  // a band around y
    std::string label{};                  // beside the point
};

struct Series {
    std::string name;
    std::vector<Point> points;
    bool is_reference = false;  // a dashed grey line without markers: what would be ideal
};

// Points over x, joined in order of x unless `joined` is false.
struct XyChart {
    ChartText text;
    AxisKind x_kind = AxisKind::linear, y_kind = AxisKind::linear;
    bool x_from_zero = false, y_from_zero = true;
    bool joined = true;
    // Ticks of x at these values only; empty: chosen.
    std::vector<double> x_ticks{};
    std::vector<Series> series;
};
constexpr size_t kMaxSeries = 12;  // more, references aside, are left out
// " The first 12 of 30 cases are drawn." when some are left out; for captions.
std::string left_out_note(const std::vector<Series>& series);
std::string draw(const XyChart& chart, std::string_view id, double width_px);

// Horizontal bars, one under the other, made of parts.
struct StackedBars {
    struct Part {
        std::string name;
        std::string style;  // CSS class that fills it: phase_style() or series_style()
    };
    struct Row {
        std::string label;
        std::vector<double> values;  // one per part
    };
    ChartText text;
    std::string unit;  // of values; "%" for shares
    bool with_totals = true;
    std::vector<Part> parts;
    std::vector<Row> rows;
};
std::string draw(const StackedBars& chart, std::string_view id, double width_px);

// A matrix by colour depth: white is zero, full is the largest value. Values are printed in cells
// that are large enough.
struct HeatMap {
    ChartText text;
    std::string unit;
    std::vector<std::string> row_labels, column_labels;
    std::vector<std::vector<double>> values;  // [rows][columns]
    int digits = 3;
};
std::string draw(const HeatMap& chart, std::string_view id, double width_px);

// Spans of time on tracks, and arrows between tracks.
struct Timeline {
    struct Track {
        std::string group, name;  // rank, stream
    };
    struct Span {
        size_t track = 0;
        double begin_us = 0, end_us = 0;
        std::string style, name, tooltip;
    };
    struct Arrow {
        size_t from_track = 0, to_track = 0;
        double from_us = 0, to_us = 0;
    };
    ChartText text;
    double begin_us = 0, end_us = 0;  // what is drawn; spans are cut to it
    std::vector<Track> tracks;
    std::vector<Span> spans;
    std::vector<Arrow> arrows;
};
std::string draw(const Timeline& chart, std::string_view id, double width_px);

// Relative differences, to the left or right of zero, beside what counts as noise.
struct DifferenceBars {
    struct Row {
        std::string label;
        double change = 0;  // new / old - 1
        double noise = 0;   // |change| up to here says nothing
        int verdict = 0;    // -1 worse, 0 within noise, 1 better
    };
    ChartText text;
    std::vector<Row> rows;
};
std::string draw(const DifferenceBars& chart, std::string_view id, double width_px);

// Classes of the style sheet. Phases are zones of base/trace.h.
std::string series_style(size_t idx);
std::string phase_style(std::string_view phase);

}  // namespace ferry::report
