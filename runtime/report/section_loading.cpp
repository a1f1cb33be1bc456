// `ferry bench load` and `ferry bench scaling`.
#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "runtime/report/charts.h"
#include "runtime/report/sections.h"

namespace ferry::report {
namespace {

std::vector<NamedRow> rows_of(const Results& results, const std::string& benchmark,
                              const char* first, const char* second) {
    std::vector<NamedRow> rows;
    for (const BenchResult* bench : results.of(benchmark))
        for (const Row& row : bench->rows())
            if (row.find_text("skipped").value_or("").empty())
                rows.push_back({bench, row,
                                fmt::format("{}{} {}", prefix_of(*bench, results), row.text(first),
                                            row.text(second))});
    return rows;
}

// One line per result and kind (strong, weak) over ranks.
Figure lines(const Results& results, const std::vector<NamedRow>& rows, const std::string& id,
             const Field& field, const std::string& title) {
    XyChart chart{.text = {.title = title,
                           .description = title + " over the number of ranks",
                           .x_label = "ranks",
                           .y_label = field.unit},
                  .x_ticks = {},
                  .series = {}};
    std::set<double> ticks;
    for (const NamedRow& named : rows) {
        const std::string name =
            prefix_of(*named.bench, results) + named.row.text("kind") + " scaling";
        auto found = std::ranges::find(chart.series, name, &Series::name);
        if (found == chart.series.end())
            found = chart.series.insert(chart.series.end(), {.name = name, .points = {}});
        const double ranks = named.row.number("ranks");
        found->points.push_back({.x = ranks, .y = named.row.number(field.key) * field.scale});
        ticks.insert(ranks);
    }
    chart.x_ticks.assign(ticks.begin(), ticks.end());
    return {
        .id = id,
        .title = title,
        .caption = fmt::format("Strong: the same work on more ranks. Weak: work that grows with "
                               "the ranks.{}",
                               left_out_note(chart.series)),
        .draw = [chart](std::string_view name, double width) { return draw(chart, name, width); },
        .data = table_of(rows, "Case", {{"ranks", "Ranks", "", 1, 7}, field})};
}

}  // namespace

void add_scaling_results(const Results& results, Section& section) {
    const std::vector<NamedRow> rows = rows_of(results, "scaling", "kind", "layout");
    if (rows.empty()) return;
    section.blocks.push_back(lines(results, rows, "scaling-speedup",
                                   {"speedup", "Speed-up", "times the first"},
                                   "Speed-up by ranks"));
    section.blocks.push_back(lines(results, rows, "scaling-measured-efficiency",
                                   {"efficiency", "Efficiency", "% of linear", 100},
                                   "Measured efficiency by ranks"));
    Table table = table_of(rows, "Case",
                           {{"ranks", "Ranks", "", 1, 7},
                            {"nodes", "Nodes", "", 1, 7},
                            {"requests", "Requests", "", 1, 7},
                            {"wall_s", "Time", "s"},
                            {"spread", "Spread", "%", 100, 2},
                            {"output_tokens_per_s", "Output", "tokens/s"},
                            {"output_tokens_per_s_per_rank", "per rank", "tokens/s"},
                            {"speedup", "Speed-up", "", 1, 3},
                            {"efficiency", "Efficiency", "%", 100, 3}});
    table.caption = "Strong and weak scaling";
    section.blocks.push_back(std::move(table));
}

Section loading_section(const Results& results) {
    Section section{.id = "loading", .title = "Loading"};
    const std::vector<NamedRow> rows = rows_of(results, "load", "layout", "state");
    if (rows.empty()) {
        section.absent = "No result of ferry bench load was given.";
        return section;
    }
    StackedBars bars{.text = {.title = "Loading speed",
                              .description = "GB/s of loading and of plain reading, by layout and "
                                             "state of the files",
                              .x_label = "GB/s, all ranks",
                              .y_label = {}},
                     .unit = "GB/s",
                     .parts = {{"load", series_style(0)}, {"plain read", series_style(2)}},
                     .rows = {}};
    for (const NamedRow& named : rows) {
        bars.rows.push_back({named.name, {named.row.number("load_GBps"), 0}});
        bars.rows.push_back({"plain read", {0, named.row.number("raw_GBps")}});
    }
    section.blocks.push_back(Figure{
        .id = "loading-speed",
        .title = "Loading speed",
        .caption =
            "Bytes of the checkpoint that all ranks loaded, over the time of the slowest, and a "
            "plain "
            "read of the same files by the same ranks. Cold: none of them was in the page cache.",
        .full_width = true,
        .draw = [bars](std::string_view id, double width) { return draw(bars, id, width); },
        .data = {}});
    Table table = table_of(rows, "Case",
                           {{"ranks", "Ranks", "", 1, 7},
                            {"cached_share", "In the page cache", "%", 100, 3},
                            {"load_s", "Load", "s"},
                            {"spread", "Spread", "%", 100, 2},
                            {"load_bytes", "Loaded", "MB", 1e-6},
                            {"load_GBps", "Speed", "GB/s"},
                            {"load_GBps_per_rank", "per rank", "GB/s"},
                            {"raw_s", "Plain read", "s"},
                            {"raw_GBps", "Speed", "GB/s"},
                            {"of_raw", "Load of plain read", "%", 100, 3}});
    table.caption = "Loading beside a plain read of the same files";
    section.blocks.push_back(std::move(table));
    return section;
}

}  // namespace ferry::report
