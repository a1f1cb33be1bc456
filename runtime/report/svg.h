// One inline SVG picture, written element by element. Colours come from the page's classes, so that
// light and dark are the style sheet's matter.
#pragma once
#include <fmt/core.h>

#include <initializer_list>
#include <string>
#include <string_view>

namespace ferry::report {

enum class Anchor { start, middle, end };

class Svg {
  public:
    // Scales with its container, up to `width_px`. `id` must be unique in the page; title and
    // description are what a screen reader says.
    Svg(std::string_view id, double width_px, double height_px, std::string_view title,
        std::string_view description);

    // `tooltip`: shown when the pointer rests; empty: none.
    void rect(double x, double y, double width, double height, std::string_view classes,
              std::string_view tooltip = {});
    void line(double x1, double y1, double x2, double y2, std::string_view classes);
    // `path`: data made of numbers and commands only.
    void path(std::string_view path, std::string_view classes, std::string_view tooltip = {},
              std::string_view attributes = {});
    // Baseline at y. Cut with an ellipsis when `max_width_px` > 0 and it is wider.
    void text(double x, double y, std::string_view text, Anchor anchor, std::string_view classes,
              double max_width_px = 0);
    void open_group(std::string_view classes, std::string_view attributes = {});
    void close_group();
    // Verbatim: text that is SVG already.
    void raw(std::string_view element) { body_ += element; }

    double width() const { return width_; }
    double height() const { return height_; }
    std::string finish();

  private:
    double width_, height_;
    std::string body_;
};

// Short and exact enough: at most two digits after the point.
std::string coordinate(double value);

// The data of a path: `PathData().move(0, 0).line(3, 4).close()`.
class PathData {
  public:
    PathData& move(double x, double y) { return add('M', {x, y}); }
    PathData& line(double x, double y) { return add('L', {x, y}); }
    // The first point moves, the others are joined by lines.
    PathData& go(double x, double y) { return add(text_.empty() ? 'M' : 'L', {x, y}); }
    PathData& curve(double x1, double y1, double x2, double y2, double x, double y) {
        return add('C', {x1, y1, x2, y2, x, y});
    }
    PathData& circle(double x, double y, double radius);
    PathData& box(double x, double y, double width, double height);
    PathData& close() { return add('Z', {}); }
    const std::string& text() const { return text_; }
    operator std::string_view() const { return text_; }

  private:
    PathData& add(char command, std::initializer_list<double> numbers);
    std::string text_;
};

constexpr double kFontPx = 12;

}  // namespace ferry::report
