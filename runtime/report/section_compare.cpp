// Results beside a baseline, and the figures that matter most.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "runtime/report/charts.h"
#include "runtime/report/compare.h"
#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr size_t kMaxBars = 40;

std::string verdict_text(const Comparison& comparison) {
    switch (comparison.verdict) {
        case Verdict::worse:
            return comparison.change > 0 ? "slower" : "lower";
        case Verdict::within_noise:
            return "within noise";
        case Verdict::better:
            return comparison.change > 0 ? "higher" : "faster";
    }
    return "";
}

Table comparison_table(const std::vector<Comparison>& all, const std::string& old_name,
                       const std::string& new_name) {
    Table table{.caption = new_name + " beside " + old_name,
                .columns = {{.name = "Measurement"},
                            {.name = "Metric"},
                            {.name = "Baseline", .unit = old_name, .is_number = true},
                            {.name = "Now", .unit = new_name, .is_number = true},
                            {.name = "Difference", .is_number = true},
                            {.name = "Noise", .is_number = true},
                            {.name = "Verdict"}}};
    for (const Comparison& one : all) {
        const char* style = one.verdict == Verdict::better  ? "good"
                            : one.verdict == Verdict::worse ? "bad"
                                                            : "";
        const auto with_unit = [&](double value) {
            Cell cell = number_cell(value);
            cell.text += "\xC2\xA0" + one.unit;
            return cell;
        };
        table.rows.push_back(
            {{.text = one.name},
             {.text = one.metric},
             with_unit(one.old_value),
             with_unit(one.new_value),
             {.text = format_percent_change(one.change), .value = one.change},
             {.text = fmt::format("\xC2\xB1{}\xC2\xA0%", format_number(one.noise * 100, 2)),
              .value = one.noise},
             {.text = verdict_text(one), .style = style}});
    }
    return table;
}

Figure comparison_figure(const std::vector<Comparison>& all, const std::string& metric,
                         const std::string& new_name, size_t idx) {
    DifferenceBars bars{.text = {.title = "Difference: " + metric,
                                 .description = "Relative difference of each measurement to the "
                                                "baseline, beside its noise",
                                 .x_label = "% of the baseline",
                                 .y_label = {}},
                        .rows = {}};
    size_t num = 0;
    for (const Comparison& one : all) {
        if (one.metric != metric || ++num > kMaxBars) continue;
        const int verdict = one.verdict == Verdict::better  ? 1
                            : one.verdict == Verdict::worse ? -1
                                                            : 0;
        bars.rows.push_back({one.name, one.change, one.noise, verdict});
    }
    const std::string left_out =
        num > kMaxBars ? fmt::format(" The first {} of {} are drawn.", kMaxBars, num) : "";
    return {.id = fmt::format("difference-{}", idx),
            .title = fmt::format("{}: {}", new_name, metric),
            .caption =
                "Green: better; red: worse; grey: within noise, which is the pale band "
                "around zero." +
                left_out,
            .full_width = true,
            .draw = [bars](std::string_view id, double width) { return draw(bars, id, width); },
            .data = {}};
}

std::string summary(const std::vector<Comparison>& all, const std::string& name) {
    size_t better = 0, worse = 0;
    for (const Comparison& one : all) {
        better += one.verdict == Verdict::better ? 1 : 0;
        worse += one.verdict == Verdict::worse ? 1 : 0;
    }
    return fmt::format("{}: of {} measurements {} are better, {} worse and {} within noise.", name,
                       all.size(), better, worse, all.size() - better - worse);
}

void add_throughput_keys(const Results& results, KeyFigures& keys) {
    const std::vector<NamedRow> rows = measured_rows(results);
    const auto best = [&](const char* key, bool highest) {
        const NamedRow* found = nullptr;
        for (const NamedRow& named : rows) {
            const auto value = named.row.find_number(key);
            if (!value || *value <= 0 || !counts(named.row)) continue;
            const bool beats = found == nullptr || (highest ? *value > found->row.number(key)
                                                            : *value < found->row.number(key));
            if (beats) found = &named;
        }
        return found;
    };
    if (const NamedRow* row = best("output_tokens_per_s", true))
        keys.figures.push_back(
            {"Most output", format_number(row->row.number("output_tokens_per_s"), 4) + " tokens/s",
             row->name});
    if (const NamedRow* row = best("tpot_p50_ms", false))
        keys.figures.push_back({"Shortest time per token (p50)",
                                format_number(row->row.number("tpot_p50_ms"), 3) + " ms",
                                row->name});
    if (const NamedRow* row = best("ttft_p50_ms", false))
        keys.figures.push_back({"Shortest time to first token (p50)",
                                format_number(row->row.number("ttft_p50_ms"), 3) + " ms",
                                row->name});
}

void add_exchange_keys(const Results& results, KeyFigures& keys) {
    std::optional<NamedRow> soonest, widest;
    for (const BenchResult* bench : results.of("exchange"))
        for (const Row& row : bench->rows()) {
            if (!counts(row)) continue;
            const NamedRow named{bench, row,
                                 prefix_of(*bench, results) + row.text("case") + ", " +
                                     format_number(row.number("tokens"), 7) + " tokens"};
            if (!soonest || row.number("both_us") < soonest->row.number("both_us")) soonest = named;
            if (!widest || row.number("algorithm_GBps") > widest->row.number("algorithm_GBps"))
                widest = named;
        }
    if (!soonest) return;
    keys.figures.push_back({"Fastest exchange",
                            format_quantity(soonest->row.number("both_us") * 1e-6, "s"),
                            soonest->name});
    keys.figures.push_back({"Widest exchange",
                            format_number(widest->row.number("algorithm_GBps"), 3) + " GB/s",
                            widest->name});
}

void add_layer_keys(const Results& results, KeyFigures& keys) {
    for (const BenchResult* bench : results.of("layer"))
        for (const Row& row : bench->rows())
            if (row.text("stage") == "step" && counts(row) && keys.figures.size() < 8)
                keys.figures.push_back(
                    {"Step: " + prefix_of(*bench, results) + row.text("workload"),
                     format_quantity(row.number("best_us") * 1e-6, "s"),
                     format_number(row.number("of_bound") * 100, 3) + " % of the bound"});
}

}  // namespace

Section overview_section(const Results& results) {
    Section section{.id = "overview", .title = "Overview"};
    KeyFigures keys;
    add_throughput_keys(results, keys);
    add_exchange_keys(results, keys);
    add_layer_keys(results, keys);
    if (!keys.figures.empty()) section.blocks.push_back(std::move(keys));
    return section;
}

Section comparison_section(const Results& results) {
    Section section{.id = "comparison", .title = "Comparison"};
    if (!results.baseline) {
        section.absent = "No --baseline was given.";
        return section;
    }
    const std::string& old_name = results.baseline->name;
    std::vector<Block> details;
    if (results.of(results.baseline->benchmark).empty())
        throw Error(ErrorKind::usage, "--baseline: {} is of bench {}, no other result is",
                    results.baseline->path, results.baseline->benchmark);
    for (const BenchResult& bench : results.benches) {
        if (bench.benchmark != results.baseline->benchmark) continue;
        std::vector<std::string> missing;
        const std::vector<Comparison> all = compare(*results.baseline, bench, &missing);
        section.blocks.push_back(Paragraph{.text = summary(all, bench.name)});
        if (const auto other = differences(*results.baseline, bench); !other.empty())
            section.blocks.push_back(
                Paragraph{.text = fmt::format("{}: not measured as the baseline was: {}.",
                                              bench.name, fmt::join(other, "; ")),
                          .is_warning = true});
        if (!missing.empty())
            section.blocks.push_back(
                Paragraph{.text = fmt::format("{}: not compared, as only one result has them: {}.",
                                              bench.name, fmt::join(missing, "; ")),
                          .is_warning = true});
        std::vector<std::string> metrics;
        for (const Comparison& one : all)
            if (std::ranges::find(metrics, one.metric) == metrics.end())
                metrics.push_back(one.metric);
        for (const std::string& metric : metrics)
            details.push_back(comparison_figure(all, metric, bench.name, details.size() + 1));
        if (!all.empty()) details.push_back(comparison_table(all, old_name, bench.name));
    }
    section.blocks.push_back(Paragraph{.text = kNoiseRule});
    for (Block& block : details) section.blocks.push_back(std::move(block));
    return section;
}

}  // namespace ferry::report
