// `ferry bench throughput`: how much, how soon, at how many ranks, and what one costs the other.
#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <set>

#include "runtime/report/charts.h"
#include "runtime/report/sections.h"
#include "runtime/report/sweeps.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr const char* kNone = "No result of ferry bench throughput was given.";

Figure bars_figure(const std::vector<NamedRow>& rows) {
    StackedBars bars{.text = {.title = "Output tokens per second",
                              .description = "Generated tokens per second, by case",
                              .x_label = "output tokens/s, all ranks",
                              .y_label = {}},
                     .unit = "tokens/s",
                     .parts = {{"output", series_style(0)}},
                     .rows = {}};
    for (const NamedRow& named : rows)
        bars.rows.push_back({named.name, {named.row.number("output_tokens_per_s")}});
    return {.id = "throughput-output",
            .title = "Output tokens per second",
            .caption = "Median of the repetitions, over all ranks.",
            .full_width = true,
            .draw = [bars](std::string_view id, double width) { return draw(bars, id, width); },
            .data = {}};
}

// Rows that differ in `key` only form one series.
std::string group_name(const NamedRow& named, const Sweeps& sweeps,
                       const std::set<std::string>& without) {
    std::string name = std::to_string(sweeps.of(*named.bench));
    for (const char* key : {"layout", "max_batch", "micro_batches", "mode", "transport", "threads",
                            "rate", "tp_size", "ranks", "attention_ranks", "expert_ranks"}) {
        if (!without.contains(key)) name += fmt::format("|{}={}", key, named.row.words(key));
    }
    return name;
}

using Group = std::vector<const NamedRow*>;

// The words of a case that all rows of a group share.
std::string common_case(const Group& group) {
    std::string common;
    const std::string first = group[0]->row.text("case");
    size_t begin = 0;
    while (begin < first.size()) {
        const size_t end = std::min(first.find(' ', begin), first.size());
        const std::string word = first.substr(begin, end - begin);
        const bool in_all = std::ranges::all_of(group, [&](const NamedRow* row) {
            const std::string name = fmt::format(" {} ", row->row.text("case"));
            return name.find(fmt::format(" {} ", word)) != std::string::npos;
        });
        if (in_all) common += (common.empty() ? "" : " ") + word;
        begin = end + 1;
    }
    if (common.ends_with(" batch")) common.resize(common.size() - 6);
    return common;
}

std::vector<Group> group_rows(const std::vector<NamedRow>& rows, const Sweeps& sweeps,
                              const std::set<std::string>& without) {
    std::vector<Group> groups;
    std::map<std::string, size_t> idx;
    for (const NamedRow& named : rows) {
        const auto [found, is_new] =
            idx.try_emplace(group_name(named, sweeps, without), groups.size());
        if (is_new) groups.emplace_back();
        groups[found->second].push_back(&named);
    }
    return groups;
}

bool varies(const std::vector<NamedRow>& rows, const char* key) {
    std::set<double> values;
    for (const NamedRow& named : rows) values.insert(named.row.find_number(key).value_or(0));
    return values.size() > 1;
}

std::vector<double> values_of(const std::vector<NamedRow>& rows, const char* key) {
    std::set<double> values;
    for (const NamedRow& named : rows) values.insert(named.row.number(key));
    return {values.begin(), values.end()};
}

std::string name_of(const Group& group, const Sweeps& sweeps) {
    return sweeps.prefix(*group[0]->bench) + common_case(group);
}

Series series_of(const Group& group, const Sweeps& sweeps, const char* x, const char* y) {
    Series series{.name = name_of(group, sweeps), .points = {}};
    for (const NamedRow* named : group) {
        const std::optional<double> at = named->row.find_number(x),
                                    value = named->row.find_number(y);
        if (at && value) series.points.push_back({.x = *at, .y = *value});
    }
    return series;
}

Figure lines_figure(const std::string& id, const std::string& caption, const ChartText& text,
                    std::vector<Series> series, std::vector<double> x_ticks, AxisKind x_kind) {
    XyChart chart{
        .text = text, .x_kind = x_kind, .x_ticks = std::move(x_ticks), .series = std::move(series)};
    Table data{.columns = {{.name = "Case"},
                           {.name = text.x_label, .is_number = true},
                           {.name = text.y_label, .is_number = true}}};
    for (const Series& one : chart.series)
        for (const Point& point : one.points)
            data.rows.push_back(
                {{.text = one.name}, number_cell(point.x, 7), number_cell(point.y)});
    return {
        .id = id,
        .title = text.title,
        .caption = caption + left_out_note(chart.series),
        .draw = [chart](std::string_view name, double width) { return draw(chart, name, width); },
        .data = std::move(data)};
}

const std::vector<Field> kThroughputFields{{"output_tokens_per_s", "Output", "tokens/s"},
                                           {"prefill_tokens_per_s", "Prefill", "tokens/s"},
                                           {"total_tokens_per_s", "Total", "tokens/s"},
                                           {"requests_per_s", "Requests", "1/s"},
                                           {"decode_phase_tokens_per_s", "Decoding", "tokens/s"},
                                           {"prefill_phase_tokens_per_s", "Prefilling", "tokens/s"},
                                           {"spread", "Spread", "%", 100, 2}};
const std::vector<Field> kShareFields{
    {"output_tokens_per_s_per_rank", "Output", "tokens/s and rank"},
    {"output_tokens_per_s_per_node", "Output", "tokens/s and node"},
    {"output_tokens_per_s_per_gpu", "Output", "tokens/s and GPU"},
    {"prefill_tokens_per_s_per_rank", "Prefill", "tokens/s and rank"},
    {"prefill_tokens_per_s_per_node", "Prefill", "tokens/s and node"},
    {"prefill_tokens_per_s_per_gpu", "Prefill", "tokens/s and GPU"},
    {"peak_rss_bytes", "Memory", "MB, largest rank", 1e-6},
    {"imbalance", "Experts", "max/mean", 1, 3},
    {"hidden_share", "Exchange", "% hidden, at most", 100, 3}};

void add_validity(const std::vector<NamedRow>& rows, Table& table) {
    table.columns.push_back({.name = "Valid"});
    for (size_t r = 0; r < rows.size(); ++r) {
        const std::string valid = rows[r].row.find_text("valid").value_or("\xE2\x80\x93");
        table.rows[r].push_back({.text = valid, .style = valid == "yes" ? "good" : "bad"});
    }
}

Table latency_table(const std::vector<NamedRow>& rows, const char* key, const std::string& name) {
    Table table{.caption = name,
                .columns = {{.name = "Case"}, {.name = "Samples", .is_number = true}}};
    const char* const kinds[] = {"mean", "min", "p50", "p90", "p99", "max"};
    for (const char* kind : kinds)
        table.columns.push_back({.name = kind, .unit = "ms", .is_number = true});
    for (const NamedRow& named : rows) {
        const Row of = named.row.inside("latency").inside(key);
        if (of.keys().empty()) continue;
        std::vector<Cell>& cells = table.rows.emplace_back();
        cells.push_back({.text = named.name});
        cells.push_back(number_cell(of.find_number("count"), 12));
        for (const char* kind : kinds) cells.push_back(number_cell(of.find_number(kind)));
    }
    return table;
}

// The fastest row of each number of ranks, by group.
struct Scale {
    std::string name;
    std::map<int64_t, const NamedRow*> best;  // by ranks
};

std::vector<Scale> scales_of(const std::vector<NamedRow>& rows, const Sweeps& sweeps) {
    std::vector<Scale> scales;
    const std::set<std::string> free{"layout",        "ranks",   "attention_ranks",
                                     "expert_ranks",  "mode",    "transport",
                                     "micro_batches", "tp_size", "threads"};
    for (const auto& group : group_rows(rows, sweeps, free)) {
        Scale scale;
        for (const NamedRow* named : group) {
            if (!counts(named->row)) continue;
            const NamedRow*& best = scale.best[static_cast<int64_t>(named->row.number("ranks"))];
            if (best == nullptr ||
                best->row.number("output_tokens_per_s") < named->row.number("output_tokens_per_s"))
                best = named;
        }
        if (scale.best.size() < 2) continue;
        const Row& row = group[0]->row;
        const double rate = row.find_number("rate").value_or(0);
        scale.name = fmt::format("{}batch {}{}", sweeps.prefix(*group[0]->bench),
                                 format_number(row.find_number("max_batch").value_or(0), 7),
                                 rate > 0 ? fmt::format(" at {}/s", format_number(rate)) : "");
        scales.push_back(std::move(scale));
    }
    return scales;
}

}  // namespace

Section throughput_section(const Results& results) {
    Section section{.id = "throughput", .title = "Throughput"};
    const std::vector<NamedRow> rows = measured_rows(results);
    if (rows.empty()) {
        section.absent = kNone;
        return section;
    }
    const Sweeps sweeps(results);
    section.blocks.push_back(bars_figure(rows));
    for (const auto& [key, label] :
         {std::pair{"max_batch", "requests in a batch"}, {"rate", "offered requests per second"}}) {
        if (!varies(rows, key)) continue;
        std::vector<Series> output, latency;
        for (const auto& group : group_rows(rows, sweeps, {key})) {
            output.push_back(series_of(group, sweeps, key, "output_tokens_per_s"));
            latency.push_back(series_of(group, sweeps, key, "ttft_p99_ms"));
        }
        const AxisKind kind = key[0] == 'm' ? AxisKind::log2 : AxisKind::linear;
        section.blocks.push_back(
            lines_figure(fmt::format("throughput-by-{}", slug(key)), "Median of the repetitions.",
                         {.title = fmt::format("Output by {}", label),
                          .description = fmt::format("Output tokens per second over {}", label),
                          .x_label = label,
                          .y_label = "output tokens/s"},
                         output, values_of(rows, key), kind));
        section.blocks.push_back(
            lines_figure(fmt::format("first-token-by-{}", slug(key)),
                         "99th percentile of the time from a request's arrival to its first token.",
                         {.title = fmt::format("Time to first token by {}", label),
                          .description = fmt::format("Time to first token over {}", label),
                          .x_label = label,
                          .y_label = "ms (p99)"},
                         latency, values_of(rows, key), kind));
    }
    Table table = table_of(rows, "Case", kThroughputFields);
    table.caption = "Throughput of all cases";
    add_validity(rows, table);
    section.blocks.push_back(std::move(table));
    Table shares = table_of(rows, "Case", kShareFields);
    shares.caption = "Per rank and node; memory, balance of experts, hidden exchange";
    if (shares.columns.size() > 1) section.blocks.push_back(std::move(shares));
    return section;
}

Section latency_section(const Results& results) {
    Section section{.id = "latency", .title = "Latency"};
    const std::vector<NamedRow> rows = measured_rows(results);
    if (rows.empty()) section.absent = kNone;
    const std::pair<const char*, const char*> kinds[] = {
        {"ttft_ms", "Time to first token (TTFT)"},
        {"tpot_ms", "Time per output token (TPOT)"},
        {"itl_ms", "Inter-token latency (ITL)"},
        {"e2e_ms", "Whole request"}};
    for (const auto& [key, name] : kinds)
        if (Table table = latency_table(rows, key, name); !table.rows.empty())
            section.blocks.push_back(std::move(table));
    std::vector<NamedRow> with_goals;
    for (const NamedRow& named : rows) {
        const Row goals = named.row.inside("goodput");
        if (goals.find_number("slo_ttft_ms").value_or(0) > 0 ||
            goals.find_number("slo_tpot_ms").value_or(0) > 0)
            with_goals.push_back({named.bench, goals, named.name});
    }
    if (with_goals.empty()) return section;
    Table table = table_of(with_goals, "Case",
                           {{"slo_ttft_ms", "TTFT goal", "ms"},
                            {"slo_tpot_ms", "TPOT goal", "ms"},
                            {"requests_per_s", "Goodput", "requests/s"},
                            {"share", "Of all requests", "%", 100}});
    table.caption = "Goodput: requests that met their latency goals";
    section.blocks.push_back(std::move(table));
    return section;
}

Section scaling_section(const Results& results) {
    Section section{.id = "scaling", .title = "Scaling"};
    const std::vector<NamedRow> rows = measured_rows(results);
    const std::vector<Scale> scales = scales_of(rows, Sweeps(results));
    add_scaling_results(results, section);
    if (scales.empty()) {
        section.absent =
            "Needs a result of ferry bench scaling, or results of ferry bench "
            "throughput with different numbers of ranks.";
        return section;
    }
    std::vector<Series> output, efficiency;
    std::set<double> ticks;
    Table table{.caption = "Strong scaling: the same work on more ranks",
                .columns = {{.name = "Work"},
                            {.name = "Ranks", .is_number = true},
                            {.name = "Fastest layout"},
                            {.name = "Output", .unit = "tokens/s", .is_number = true},
                            {.name = "Speed-up", .is_number = true},
                            {.name = "Efficiency", .unit = "%", .is_number = true}}};
    Series ideal{.name = "ideal", .points = {}, .is_reference = true};
    for (const Scale& scale : scales) {
        Series& line = output.emplace_back(Series{.name = scale.name, .points = {}});
        const auto& [first_ranks, first] = *scale.best.begin();
        const double base = first->row.number("output_tokens_per_s");
        for (const auto& [ranks, named] : scale.best) {
            const double speed = named->row.number("output_tokens_per_s");
            const double up = base > 0 ? speed / base : 0;
            const double times = static_cast<double>(ranks) / static_cast<double>(first_ranks);
            line.points.push_back({.x = static_cast<double>(ranks), .y = speed});
            ticks.insert(static_cast<double>(ranks));
            if (&scale == &scales[0])
                ideal.points.push_back({.x = static_cast<double>(ranks), .y = base * times});
            table.rows.push_back({{.text = scale.name},
                                  number_cell(static_cast<double>(ranks), 7),
                                  {.text = named->row.find_text("layout").value_or("")},
                                  number_cell(speed),
                                  number_cell(up, 3),
                                  number_cell(up / times * 100, 3)});
        }
    }
    if (scales.size() == 1) output.push_back(ideal);
    section.blocks.push_back(
        lines_figure("scaling-output", "The fastest layout of each number of ranks.",
                     {.title = "Output by ranks",
                      .description = "Output tokens per second over the number of ranks",
                      .x_label = "ranks",
                      .y_label = "output tokens/s"},
                     output, {ticks.begin(), ticks.end()}, AxisKind::linear));
    for (const Scale& scale : scales) {
        Series& line = efficiency.emplace_back(Series{.name = scale.name, .points = {}});
        const auto& [first_ranks, first] = *scale.best.begin();
        const double base =
            first->row.number("output_tokens_per_s") / static_cast<double>(first_ranks);
        for (const auto& [ranks, named] : scale.best)
            line.points.push_back({.x = static_cast<double>(ranks),
                                   .y = base > 0 ? named->row.number("output_tokens_per_s") /
                                                       static_cast<double>(ranks) / base * 100
                                                 : 0});
    }
    section.blocks.push_back(lines_figure(
        "scaling-efficiency", "Output per rank, relative to the smallest number of ranks.",
        {.title = "Efficiency by ranks",
         .description = "Parallel efficiency over the number of ranks",
         .x_label = "ranks",
         .y_label = "% of linear"},
        efficiency, {ticks.begin(), ticks.end()}, AxisKind::linear));
    section.blocks.push_back(std::move(table));
    return section;
}

Section frontier_section(const Results& results) {
    Section section{.id = "frontier", .title = "Latency and throughput"};
    const std::vector<NamedRow> rows = measured_rows(results);
    if (rows.size() < 2) {
        section.absent =
            rows.empty() ? kNone : "Needs more than one case: sweep batches or layouts.";
        return section;
    }
    XyChart chart{.text = {.title = "Latency-throughput frontier",
                           .description = "Time per output token over output tokens per second and "
                                          "rank; the dashed line joins cases that no other beats "
                                          "in both",
                           .x_label = "output tokens/s per rank",
                           .y_label = "ms per output token (p50)"},
                  .x_from_zero = true,
                  .joined = true,
                  .series = {}};
    const Sweeps sweeps(results);
    std::vector<Point> all;
    for (const auto& group : group_rows(rows, sweeps, {"max_batch", "rate"})) {
        Series series{.name = name_of(group, sweeps), .points = {}};
        for (const NamedRow* named : group) {
            const Row& row = named->row;
            const double tpot_ms = row.find_number("tpot_p50_ms").value_or(0);
            if (tpot_ms <= 0) continue;  // requests of one token have none
            const bool by_rate = row.find_number("rate").value_or(0) > 0;
            const char* key = by_rate ? "rate" : "max_batch";
            series.points.push_back(
                {.x = row.number("output_tokens_per_s_per_rank"),
                 .y = tpot_ms,
                 .label = fmt::format("{}{}", format_number(row.find_number(key).value_or(0), 7),
                                      by_rate ? "/s" : "")});
            if (counts(row)) all.push_back(series.points.back());
        }
        chart.series.push_back(std::move(series));
    }
    Series best{.name = "best of all", .points = {}, .is_reference = true};
    for (const Point& point : all) {
        const bool beaten = std::ranges::any_of(all, [&](const Point& other) {
            return other.x >= point.x && other.y <= point.y &&
                   (other.x > point.x || other.y < point.y);
        });
        if (!beaten) best.points.push_back({.x = point.x, .y = point.y});
    }
    if (best.points.size() > 1) chart.series.push_back(best);
    section.blocks.push_back(Figure{
        .id = "frontier-plot",
        .title = "Latency-throughput frontier",
        .caption = fmt::format("Down and to the right is better. Numbers beside points: requests "
                               "in a batch, or offered requests per second.{}",
                               left_out_note(chart.series)),
        .full_width = true,
        .draw = [chart](std::string_view id, double width) { return draw(chart, id, width); },
        .data = table_of(rows, "Case",
                         {{"max_batch", "Batch", "", 1, 7},
                          {"rate", "Offered", "requests/s"},
                          {"output_tokens_per_s_per_rank", "Output per rank", "tokens/s"},
                          {"tpot_p50_ms", "TPOT p50", "ms"},
                          {"tpot_p99_ms", "TPOT p99", "ms"},
                          {"ttft_p50_ms", "TTFT p50", "ms"}})});
    return section;
}

}  // namespace ferry::report
