#include "runtime/report/svg.h"

#include <cmath>

#include "runtime/report/text.h"

namespace ferry::report {
namespace {

std::string tooltip_element(std::string_view tooltip) {
    return tooltip.empty() ? "" : fmt::format("<title>{}</title>", escape_html(tooltip));
}

const char* name(Anchor anchor) {
    switch (anchor) {
        case Anchor::start:
            return "start";
        case Anchor::middle:
            return "middle";
        case Anchor::end:
            return "end";
    }
    return "start";
}

}  // namespace

std::string coordinate(double value) {
    std::string text = fmt::format("{:.2f}", std::abs(value) < 0.005 ? 0.0 : value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

PathData& PathData::add(char command, std::initializer_list<double> numbers) {
    text_ += command;
    bool first = true;
    for (const double number : numbers) {
        if (!first) text_ += ' ';
        text_ += coordinate(number);
        first = false;
    }
    return *this;
}

PathData& PathData::circle(double x, double y, double radius) {
    move(x - radius, y);
    add('a', {radius, radius, 0, 1, 0, 2 * radius, 0});
    add('a', {radius, radius, 0, 1, 0, -2 * radius, 0});
    return close();
}

PathData& PathData::box(double x, double y, double width, double height) {
    move(x, y);
    add('h', {width});
    add('v', {height});
    add('h', {-width});
    return close();
}

Svg::Svg(std::string_view id, double width_px, double height_px, std::string_view title,
         std::string_view description)
    : width_(width_px), height_(height_px) {
    const std::string name = escape_html(id);
    body_ = fmt::format(
        "<svg id=\"{0}\" class=\"plot\" viewBox=\"0 0 {1} {2}\" style=\"max-width:{1}px\" "
        "role=\"img\" aria-labelledby=\"{0}-t {0}-d\"><title id=\"{0}-t\">{3}</title>"
        "<desc id=\"{0}-d\">{4}</desc>",
        name, coordinate(width_px), coordinate(height_px), escape_html(title),
        escape_html(description));
}

void Svg::rect(double x, double y, double width, double height, std::string_view classes,
               std::string_view tooltip) {
    body_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"", classes,
                         coordinate(x), coordinate(y), coordinate(width), coordinate(height));
    body_ += tooltip.empty() ? "/>" : fmt::format(">{}</rect>", tooltip_element(tooltip));
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view classes) {
    body_ += fmt::format("<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>", classes,
                         coordinate(x1), coordinate(y1), coordinate(x2), coordinate(y2));
}

void Svg::path(std::string_view path, std::string_view classes, std::string_view tooltip,
               std::string_view attributes) {
    body_ += fmt::format("<path class=\"{}\" d=\"{}\"", classes, path);
    if (!attributes.empty()) (body_ += ' ') += attributes;
    body_ += tooltip.empty() ? "/>" : fmt::format(">{}</path>", tooltip_element(tooltip));
}

void Svg::text(double x, double y, std::string_view text, Anchor anchor, std::string_view classes,
               double max_width_px) {
    const std::string shown =
        max_width_px > 0 ? shorten(text, max_width_px, kFontPx) : std::string(text);
    body_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}{}</text>",
                         classes, coordinate(x), coordinate(y), name(anchor), escape_html(shown),
                         shown == text ? "" : tooltip_element(text));
}

void Svg::open_group(std::string_view classes, std::string_view attributes) {
    body_ +=
        fmt::format("<g class=\"{}\"{}{}>", classes, attributes.empty() ? "" : " ", attributes);
}

void Svg::close_group() {
    body_ += "</g>";
}

std::string Svg::finish() {
    return body_ + "</svg>";
}

}  // namespace ferry::report
