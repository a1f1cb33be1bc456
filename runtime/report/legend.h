// What plots have in common: legends and frames. For .cpp files of plots.
#pragma once
#include <string>
#include <vector>

#include "runtime/report/svg.h"

namespace ferry::report {

struct LegendEntry {
    enum class Mark { box, line, dashes } mark = Mark::box;
    std::string name;
    std::string style;  // CSS classes
    size_t shape = 0;   // of the marker on a line
};

// Where entries go when written in lines from the left.
struct LegendLayout {
    struct Place {
        double x = 0, y = 0, text_width = 0;
    };
    std::vector<Place> places;
    double height = 0;
};
LegendLayout lay_out_legend(const std::vector<LegendEntry>& entries, double width_px);

// At (x, y) of the picture.
void draw_legend(Svg& svg, const std::vector<LegendEntry>& entries, const LegendLayout& layout,
                 double x, double y);

// Markers by series: circle, square, triangle, diamond, ... around (x, y).
std::string marker_path(size_t shape, double x, double y, double radius);

}  // namespace ferry::report
