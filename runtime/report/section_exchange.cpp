// `ferry bench exchange`: dispatch and combine between ranks.
#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "runtime/report/charts.h"
#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

std::vector<NamedRow> exchange_rows(const Results& results) {
    std::vector<NamedRow> found;
    for (const BenchResult* bench : results.of("exchange"))
        for (const Row& row : bench->rows())
            found.push_back({bench, row, prefix_of(*bench, results) + row.text("case")});
    return found;
}

// One series per case.
std::vector<Series> series_of(const std::vector<NamedRow>& rows, const char* key, const char* low,
                              const char* high) {
    std::vector<Series> all;
    for (const NamedRow& named : rows) {
        auto found = std::ranges::find(all, named.name, &Series::name);
        if (found == all.end()) found = all.insert(all.end(), {.name = named.name, .points = {}});
        Point point{.x = named.row.number("tokens"), .y = named.row.number(key)};
        if (low != nullptr) point.low = named.row.find_number(low);
        if (high != nullptr) point.high = named.row.find_number(high);
        if (point.x > 0 && point.y > 0) found->points.push_back(point);
    }
    return all;
}

std::vector<double> sizes_of(const std::vector<Series>& all) {
    std::set<double> sizes;
    for (const Series& series : all)
        for (const Point& point : series.points) sizes.insert(point.x);
    return {sizes.begin(), sizes.end()};
}

// Words that all names have in common are said once, in the caption.
std::string take_common_words(std::vector<Series>& series) {
    std::vector<std::vector<std::string>> words;
    for (const Series& one : series) {
        std::vector<std::string>& list = words.emplace_back();
        size_t begin = 0;
        while (begin < one.name.size()) {
            const size_t end = std::min(one.name.find(' ', begin), one.name.size());
            list.push_back(one.name.substr(begin, end - begin));
            begin = end + 1;
        }
    }
    if (series.size() < 2) return series.empty() ? "" : series[0].name;
    const bool same_length = std::ranges::all_of(
        words, [&](const auto& list) { return list.size() == words[0].size(); });
    if (!same_length) return "";
    std::string common;
    std::vector<bool> differs(words[0].size(), false);
    for (size_t w = 0; w < words[0].size(); ++w) {
        for (const auto& list : words) differs[w] = differs[w] || list[w] != words[0][w];
        if (!differs[w]) common += (common.empty() ? "" : " ") + words[0][w];
    }
    for (size_t s = 0; s < series.size(); ++s) {
        series[s].name.clear();
        for (size_t w = 0; w < words[s].size(); ++w)
            if (differs[w]) series[s].name += (series[s].name.empty() ? "" : " ") + words[s][w];
    }
    return common;
}

Figure figure_of(const std::vector<NamedRow>& rows, const std::string& id, const std::string& title,
                 const std::string& caption, const std::string& y_label, std::vector<Series> series,
                 const Field& field) {
    const std::string common = take_common_words(series);
    const std::string left_out = left_out_note(series);
    XyChart chart{.text = {.title = title,
                           .description = caption,
                           .x_label = "tokens of each attention rank",
                           .y_label = y_label},
                  .x_kind = AxisKind::log2,
                  .y_kind = AxisKind::log10,
                  .x_ticks = sizes_of(series),
                  .series = {}};
    chart.series = std::move(series);
    Table data = table_of(rows, "Case", {{"tokens", "Tokens", "", 1, 7}, field});
    return {
        .id = id,
        .title = title,
        .caption = caption + left_out + (common.empty() ? "" : " Case: " + common + "."),
        .draw = [chart](std::string_view name, double width) { return draw(chart, name, width); },
        .data = std::move(data)};
}

}  // namespace

Section exchange_section(const Results& results) {
    Section section{.id = "exchange", .title = "Exchange"};
    const std::vector<NamedRow> rows = exchange_rows(results);
    if (rows.empty()) {
        section.absent = "No result of ferry bench exchange was given.";
        return section;
    }
    section.blocks.push_back(
        figure_of(rows, "exchange-time", "Time of one exchange",
                  "Dispatch and combine from a common start to the last rank: medians, and bands "
                  "from the fastest to the 99th percentile.",
                  "\xC2\xB5s", series_of(rows, "both_us", "both_min_us", "both_p99_us"),
                  {"both_us", "Median", "\xC2\xB5s"}));
    section.blocks.push_back(figure_of(rows, "exchange-bandwidth",
                                       "Bandwidth of one attention rank",
                                       "Bytes both ways over the median time.", "GB/s",
                                       series_of(rows, "algorithm_GBps", nullptr, nullptr),
                                       {"algorithm_GBps", "Bandwidth", "GB/s"}));
    Table table = table_of(rows, "Case",
                           {{"tokens", "Tokens", "per rank", 1, 7},
                            {"dispatch_us", "Dispatch", "median \xC2\xB5s"},
                            {"dispatch_p99_us", "", "p99 \xC2\xB5s"},
                            {"combine_us", "Combine", "median \xC2\xB5s"},
                            {"combine_p99_us", "", "p99 \xC2\xB5s"},
                            {"both_us", "Both", "median \xC2\xB5s"},
                            {"both_p99_us", "", "p99 \xC2\xB5s"},
                            {"bytes", "Moved", "MB", 1e-6},
                            {"algorithm_GBps", "Bandwidth", "GB/s"},
                            {"bus_GBps", "On the bus", "GB/s"},
                            {"wrong", "Wrong", "elements"}});
    table.caption = "All measurements";
    section.blocks.push_back(std::move(table));
    return section;
}

}  // namespace ferry::report
