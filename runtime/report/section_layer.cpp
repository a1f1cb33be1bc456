// `ferry bench layer`: stages of steps beside the machine's own rates.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "runtime/report/charts.h"
#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

// Stages are named for people ("routed experts"); their colours are those of phases.
std::string stage_style(const std::string& stage, size_t idx) {
    for (const char* phase :
         {"attention", "gate", "experts", "shared", "dense", "head", "embed", "exchange", "sample"})
        if (stage.find(phase) != std::string::npos)
            return phase_style(stage.find("shared") != std::string::npos ? "shared" : phase);
    return stage == "other" ? phase_style(stage) : series_style(idx);
}

struct Workloads {
    std::vector<std::string> names, stages;  // in order of appearance
    std::vector<NamedRow> rows;

    const Row* find(const std::string& name, const std::string& stage) const {
        for (const NamedRow& named : rows)
            if (named.name == name && named.row.text("stage") == stage) return &named.row;
        return nullptr;
    }
};

Workloads workloads_of(const Results& results) {
    Workloads workloads;
    const auto add = [](std::vector<std::string>& list, const std::string& name) {
        if (std::ranges::find(list, name) == list.end()) list.push_back(name);
    };
    for (const BenchResult* bench : results.of("layer"))
        for (const Row& row : bench->rows()) {
            const std::string name = prefix_of(*bench, results) + row.text("workload");
            workloads.rows.push_back({bench, row, name});
            add(workloads.names, name);
            if (row.text("stage") != "step") add(workloads.stages, row.text("stage"));
        }
    return workloads;
}

Figure stages_figure(const Workloads& workloads) {
    StackedBars bars{.text = {.title = "Where a step's time goes",
                              .description = "Share of each stage in a step, by kind of step",
                              .x_label = "% of the step",
                              .y_label = {}},
                     .unit = "%",
                     .with_totals = false,
                     .parts = {},
                     .rows = {}};
    Table data{.columns = {{.name = "Step"}}};
    for (size_t s = 0; s < workloads.stages.size(); ++s) {
        bars.parts.push_back({workloads.stages[s], stage_style(workloads.stages[s], s)});
        data.columns.push_back({.name = workloads.stages[s], .unit = "%", .is_number = true});
    }
    for (const std::string& name : workloads.names) {
        StackedBars::Row& row = bars.rows.emplace_back();
        row.label = name;
        std::vector<Cell>& cells = data.rows.emplace_back();
        cells.push_back({.text = name});
        for (const std::string& stage : workloads.stages) {
            const Row* found = workloads.find(name, stage);
            const double share = found == nullptr ? 0 : found->number("of_step") * 100;
            row.values.push_back(share);
            cells.push_back(number_cell(share, 3));
        }
    }
    return {.id = "layer-stages",
            .title = "Where a step's time goes",
            .caption =
                "Share of each stage, of the best repetition. The rest of a step is what no "
                "stage holds.",
            .draw = [bars](std::string_view id, double width) { return draw(bars, id, width); },
            .data = std::move(data)};
}

Figure bounds_figure(const Workloads& workloads) {
    HeatMap map{.text = {.title = "How near the machine's bound",
                         .description = "Percent of the time bound for each stage and kind of step",
                         .x_label = "kind of step",
                         .y_label = "stage"},
                .unit = "%",
                .row_labels = workloads.stages,
                .column_labels = workloads.names,
                .values = {}};
    map.row_labels.push_back("step");
    Table data{.columns = {{.name = "Stage"}}};
    for (const std::string& name : workloads.names)
        data.columns.push_back({.name = name, .unit = "%", .is_number = true});
    std::erase_if(map.row_labels, [&](const std::string& stage) {  // no work, no bound
        return std::ranges::none_of(workloads.names, [&](const std::string& name) {
            const Row* found = workloads.find(name, stage);
            return found != nullptr && found->number("of_bound") > 0;
        });
    });
    for (const std::string& stage : map.row_labels) {
        std::vector<double>& values = map.values.emplace_back();
        std::vector<Cell>& cells = data.rows.emplace_back();
        cells.push_back({.text = stage});
        for (const std::string& name : workloads.names) {
            const Row* found = workloads.find(name, stage);
            values.push_back(found == nullptr ? NAN : found->number("of_bound") * 100);
            cells.push_back(number_cell(values.back(), 3));
        }
    }
    return {.id = "layer-bounds",
            .title = "How near the machine's bound",
            .caption =
                "Percent of the speed that memory (a plain read loop) or arithmetic "
                "(multiply-adds), whichever is slower, would allow. Darker is nearer.",
            .draw = [map](std::string_view id, double width) { return draw(map, id, width); },
            .data = std::move(data)};
}

}  // namespace

Section layer_section(const Results& results) {
    Section section{.id = "layer", .title = "Stages of a step"};
    const Workloads workloads = workloads_of(results);
    if (workloads.rows.empty()) {
        section.absent = "No result of ferry bench layer was given.";
        return section;
    }
    section.blocks.push_back(stages_figure(workloads));
    section.blocks.push_back(bounds_figure(workloads));
    Table table = table_of(workloads.rows, "Step",
                           {{"layers", "Layers", ""},
                            {"best_us", "Best", "\xC2\xB5s"},
                            {"median_us", "Median", "\xC2\xB5s"},
                            {"of_step", "Of the step", "%", 100, 3},
                            {"bytes", "Read", "MB", 1e-6},
                            {"flops", "Work", "MFLOP", 1e-6},
                            {"GBps", "Read rate", "GB/s"},
                            {"of_read", "Of the read loop", "%", 100, 3},
                            {"GFLOPps", "Work rate", "GFLOP/s"},
                            {"of_peak", "Of the FMA peak", "%", 100, 3}});
    table.caption = "All stages";
    table.columns.insert(table.columns.begin() + 1, {.name = "Stage"});
    for (size_t r = 0; r < table.rows.size(); ++r)
        table.rows[r].insert(table.rows[r].begin() + 1,
                             {.text = workloads.rows[r].row.text("stage")});
    section.blocks.push_back(std::move(table));
    return section;
}

}  // namespace ferry::report
