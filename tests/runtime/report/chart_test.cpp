#include <gtest/gtest.h>

#include <cmath>

#include "runtime/report/charts.h"
#include "runtime/report/legend.h"
#include "runtime/report/pages.h"
#include "runtime/report/text.h"
#include "tests/runtime/report/markup.h"

namespace ferry::report {
namespace {

double number(const Element& element, const char* key) {
    return std::stod(element.attributes.at(key));
}

struct Box {
    double left, right, top, bottom;
};

// Of a text element, as wide as text_width() says.
Box box_of(const Element& text) {
    const double x = number(text, "x"), y = number(text, "y");
    const double width = text_width(text.text, 12);
    const std::string& anchor = text.attributes.at("text-anchor");
    const double left = anchor == "end" ? x - width : anchor == "middle" ? x - width / 2 : x;
    return {left, left + width, y - 9, y + 2};
}

// Every text lies inside the picture and none covers another.
void expect_readable(const Markup& markup, double width_px) {
    std::vector<std::pair<Box, std::string>> texts;
    for (const Element& element : markup.elements) {
        if (element.name != "text" || element.attributes.contains("transform")) continue;
        const Box box = box_of(element);
        EXPECT_GE(box.left, -1) << element.text;
        EXPECT_LE(box.right, width_px + 1) << element.text;
        for (const auto& [other, text] : texts)
            EXPECT_FALSE(box.left < other.right - 0.5 && other.left < box.right - 0.5 &&
                         box.top < other.bottom && other.top < box.bottom)
                << element.text << " covers " << text;
        texts.emplace_back(box, element.text);
    }
    EXPECT_FALSE(texts.empty());
}

template <typename Chart>
Markup read_chart(const Chart& chart, double width) {
    const std::string svg = draw(chart, "plot", width);
    const Markup markup = read_markup(svg);
    EXPECT_EQ(markup.error, "");
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_EQ(markup.elements.at(0).attributes.at("role"), "img");
    EXPECT_EQ(markup.elements.at(1).name, "title");
    EXPECT_EQ(markup.elements.at(2).name, "desc");
    expect_readable(markup, width);
    return markup;
}

const ChartText kText{.title = "A <title>", .description = "d", .x_label = "x", .y_label = "y"};

TEST(ReportCharts, XyChartPlacesPoints) {
    XyChart chart{.text = kText,
                  .series = {{.name = "first", .points = {{0, 0}, {10, 100}}},
                             {.name = "second <&>",
                              .points = {{0, 50, 40.0, 60.0, "label"}, {10, 75, 70.0, 80.0}}}}};
    for (const double width : {330.0, 500.0, 1030.0}) {
        const Markup markup = read_chart(chart, width);
        EXPECT_EQ(markup.with_class("mark").size(), 4u + 2u);  // and in the legend
        EXPECT_EQ(markup.with_class("band").size(), 1u);
        EXPECT_EQ(markup.with_class("curve").size(), 2u + 2u);
    }
}

TEST(ReportCharts, XyChartSurvivesOddNumbers) {
    XyChart chart{.text = kText,
                  .y_kind = AxisKind::log10,
                  .series = {{.name = "one", .points = {{1, 5}}}, {.name = "none", .points = {}}}};
    read_chart(chart, 500);
    for (int s = 0; s < 30; ++s)
        chart.series.push_back({.name = "series number " + std::to_string(s),
                                .points = {{1.0, s + 1.0}, {1000.0, 1e6 * (s + 1)}}});
    const Markup markup = read_chart(chart, 330);
    EXPECT_LE(markup.with_class("curve").size(), 2 * kMaxSeries);
    EXPECT_TRUE(markup.with_class("ideal").empty());
    chart.series.push_back({.name = "ideal", .points = {{1, 1}, {9, 9}}, .is_reference = true});
    EXPECT_EQ(read_chart(chart, 330).with_class("ideal").size(), 2u);
}

TEST(ReportCharts, StackedPartsFillTheirShare) {
    const StackedBars bars{.text = kText,
                           .unit = "%",
                           .with_totals = false,
                           .parts = {{"attention", phase_style("attention")},
                                     {"combine wait", phase_style("combine_wait")},
                                     {"nothing", phase_style("unheard of")}},
                           .rows = {{"case one", {60, 40, 0}}, {"case two", {25, 75, 0}}}};
    for (const double width : {330.0, 500.0, 1030.0}) {
        const Markup markup = read_chart(bars, width);
        const auto parts = markup.with_class("seg");
        ASSERT_EQ(parts.size(), 4u);
        EXPECT_NEAR(number(*parts[0], "width") / number(*parts[1], "width"), 1.5, 0.01);
        EXPECT_NEAR(number(*parts[0], "x") + number(*parts[0], "width"), number(*parts[1], "x"),
                    0.02);
        EXPECT_NEAR(number(*parts[1], "x") + number(*parts[1], "width"),
                    number(*parts[3], "x") + number(*parts[3], "width"), 0.02);
    }
}

TEST(ReportCharts, HeatMapOfAnySize) {
    for (const size_t columns : {1u, 8u, 256u})
        for (const size_t rows : {1u, 3u, 58u}) {
            HeatMap map{
                .text = kText, .unit = "rows", .row_labels = {}, .column_labels = {}, .values = {}};
            for (size_t r = 0; r < rows; ++r) {
                map.row_labels.push_back(std::to_string(r));
                std::vector<double>& values = map.values.emplace_back();
                for (size_t c = 0; c < columns; ++c) values.push_back(static_cast<double>(r * c));
            }
            for (size_t c = 0; c < columns; ++c) map.column_labels.push_back(std::to_string(c));
            for (const double width : {330.0, 1030.0}) read_chart(map, width);
        }
}

TEST(ReportCharts, TimelineCutsSpansToItsWindow) {
    Timeline timeline{.text = kText,
                      .begin_us = 100,
                      .end_us = 200,
                      .tracks = {{"rank 0 on a", "compute"}, {"rank 1 on b", "compute"}},
                      .spans = {{0, 50, 150, phase_style("attention"), "attention", "t"},
                                {1, 150, 260, phase_style("experts"), "experts", "t"},
                                {1, 10, 20, phase_style("gate"), "gate", "outside"}},
                      .arrows = {{0, 1, 140, 150}, {0, 1, 10, 20}}};
    const Markup markup = read_chart(timeline, 500);
    const auto spans = markup.with_class("seg");
    ASSERT_EQ(spans.size(), 2u);
    EXPECT_NEAR(number(*spans[0], "width"), number(*spans[1], "width"), 0.02);
    EXPECT_EQ(markup.with_class("flow").size(), 1u);
    EXPECT_EQ(markup.with_class("swatch").size(), 2u);  // gate is not in sight
}

TEST(ReportCharts, DifferencesPointToTheirSide) {
    const DifferenceBars bars{.text = kText,
                              .rows = {{"slower", 0.3, 0.05, -1},
                                       {"faster", -0.2, 0.02, 1},
                                       {"same", 0.01, 0.04, 0},
                                       {"broken", std::nan(""), 0.02, 0}}};
    for (const double width : {330.0, 1030.0}) {
        const Markup markup = read_chart(bars, width);
        const auto worse = markup.with_class("worse"), better = markup.with_class("better");
        ASSERT_EQ(worse.size(), 1u);
        ASSERT_EQ(better.size(), 1u);
        EXPECT_NEAR(number(*better[0], "x") + number(*better[0], "width"), number(*worse[0], "x"),
                    0.02);
    }
}

TEST(ReportCharts, ColoursStandOutInLightAndDark) {
    for (const Palette* palette : {&light_palette(), &dark_palette()}) {
        EXPECT_GE(contrast(palette->text, palette->ground), 7);
        EXPECT_GE(contrast(palette->muted, palette->ground), 4.5);
        for (const std::string& colour : palette->series)
            EXPECT_GE(contrast(colour, palette->ground), 3) << colour;
    }
    EXPECT_NEAR(contrast("#000000", "#ffffff"), 21, 0.01);
}

TEST(ReportCharts, LegendEntriesDoNotOverlap) {
    std::vector<LegendEntry> entries;
    for (int i = 0; i < 20; ++i)
        entries.push_back(
            {.name = std::string(static_cast<size_t>(3 + 5 * (i % 7)), 'm'), .style = "s1"});
    const LegendLayout layout = lay_out_legend(entries, 330);
    for (size_t i = 0; i < entries.size(); ++i) {
        EXPECT_LE(layout.places[i].x + 20 + layout.places[i].text_width, 330.01);
        if (i == 0 || layout.places[i].y != layout.places[i - 1].y) continue;
        EXPECT_GT(layout.places[i].x,
                  layout.places[i - 1].x + 20 + layout.places[i - 1].text_width);
    }
}

}  // namespace
}  // namespace ferry::report
