// Where the time of a run went, how the experts were loaded, and who waited for whom.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/trace.h"
#include "runtime/report/charts.h"
#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

struct RolePhases {
    std::string label;
    std::map<std::string, double> seconds;  // a rank's, on average over ranks of the role
};

std::vector<RolePhases> phases_of(const std::vector<NamedRow>& rows) {
    std::vector<RolePhases> all;
    for (const NamedRow& named : rows) {
        std::map<std::string, std::vector<Row>> by_role;
        for (const Row& rank : named.row.list("ranks_detail"))
            by_role[rank.find_text("role").value_or("rank")].push_back(rank.inside("phases"));
        for (const auto& [role, ranks] : by_role) {
            RolePhases& entry = all.emplace_back();
            entry.label = named.name + (by_role.size() > 1 ? ", " + role : "");
            for (const Row& phases : ranks)
                for (const std::string& phase : phases.keys())
                    entry.seconds[phase] +=
                        phases.inside(phase.c_str()).find_number("time_s").value_or(0) /
                        static_cast<double>(ranks.size());
        }
    }
    return all;
}

// In the order of base/trace.h, then others.
std::vector<std::string> phase_names(const std::vector<RolePhases>& all) {
    std::vector<std::string> names;
    for (int zone = 0; zone < kNumZones; ++zone)
        names.emplace_back(to_string(static_cast<Zone>(zone)));
    for (const RolePhases& entry : all)
        for (const auto& [phase, seconds] : entry.seconds)
            if (std::ranges::find(names, phase) == names.end()) names.push_back(phase);
    std::erase_if(names, [&](const std::string& name) {
        return std::ranges::none_of(all, [&](const RolePhases& entry) {
            const auto found = entry.seconds.find(name);
            return found != entry.seconds.end() && found->second > 0;
        });
    });
    return names;
}

std::string name_of(const std::string& phase) {
    return phase == "step" ? "between phases" : words_of(phase);
}

Figure phases_figure(const std::vector<RolePhases>& all) {
    StackedBars bars{.text = {.title = "Time by phase",
                              .description = "Share of each phase in the time of a rank, by case "
                                             "and role",
                              .x_label = "% of the time of a rank",
                              .y_label = {}},
                     .unit = "%",
                     .with_totals = false,
                     .parts = {},
                     .rows = {}};
    Table data{.columns = {{.name = "Case"}}};
    const std::vector<std::string> names = phase_names(all);
    for (const std::string& name : names) {
        bars.parts.push_back({name_of(name), phase_style(name)});
        data.columns.push_back({.name = name_of(name), .unit = "s", .is_number = true});
    }
    for (const RolePhases& entry : all) {
        StackedBars::Row& row = bars.rows.emplace_back();
        row.label = entry.label;
        std::vector<Cell>& cells = data.rows.emplace_back();
        cells.push_back({.text = entry.label});
        double sum = 0;
        for (const auto& [phase, seconds] : entry.seconds) sum += seconds;
        for (const std::string& name : names) {
            const auto found = entry.seconds.find(name);
            const double seconds = found == entry.seconds.end() ? 0 : found->second;
            row.values.push_back(sum > 0 ? seconds / sum * 100 : 0);
            cells.push_back(number_cell(seconds));
        }
    }
    return {.id = "phases-plot",
            .title = "Time by phase",
            .caption =
                "A rank's time, on average over the ranks of a role. Hatched: waiting, or a "
                "phase beside its plain namesake.",
            .full_width = true,
            .draw = [bars](std::string_view id, double width) { return draw(bars, id, width); },
            .data = std::move(data)};
}

Table exchange_table(const std::vector<NamedRow>& rows) {
    std::vector<NamedRow> exchanges;
    for (const NamedRow& named : rows)
        if (const Row exchange = named.row.inside("exchange"); !exchange.keys().empty())
            exchanges.push_back({named.bench, exchange, named.name});
    Table table = table_of(exchanges, "Case",
                           {{"in_flight_s", "In flight", "s"},
                            {"exposed_s", "Waited for", "s"},
                            {"hidden_share", "Hidden", "%, at most", 100, 3},
                            {"dispatch_bytes", "Dispatched", "MB", 1e-6},
                            {"combine_bytes", "Combined", "MB", 1e-6}});
    table.caption = "Exchange: how much of it was hidden behind computing";
    return table;
}

// Rows by layer and expert, relative to an even share.
Figure load_figure(const std::string& id, const std::string& name,
                   const std::vector<double>& layers,
                   const std::vector<std::vector<double>>& rows) {
    HeatMap map{.text = {.title = "Expert load: " + name,
                         .description = "Rows that each expert of each layer received, relative to "
                                        "the mean of the layer",
                         .x_label = "expert",
                         .y_label = "layer"},
                .unit = "\xC3\x97 mean",
                .row_labels = {},
                .column_labels = {},
                .values = {},
                .digits = 2};
    Table data{.columns = {{.name = "Layer", .is_number = true},
                           {.name = "Rows", .is_number = true},
                           {.name = "Busiest expert", .is_number = true},
                           {.name = "Its rows", .is_number = true},
                           {.name = "Max/mean", .is_number = true},
                           {.name = "Idle experts", .is_number = true}}};
    double worst = 0;
    for (size_t l = 0; l < rows.size(); ++l) {
        const double total = std::accumulate(rows[l].begin(), rows[l].end(), 0.0);
        const double mean = total / static_cast<double>(std::max<size_t>(1, rows[l].size()));
        const auto most = std::ranges::max_element(rows[l]);
        const auto idle = std::ranges::count(rows[l], 0.0);
        map.row_labels.push_back(format_number(layers[l], 7));
        std::vector<double>& values = map.values.emplace_back();
        for (const double value : rows[l]) values.push_back(mean > 0 ? value / mean : 0);
        const double ratio = mean > 0 ? *most / mean : 0;
        worst = std::max(worst, ratio);
        data.rows.push_back({number_cell(layers[l], 7), number_cell(total, 15),
                             number_cell(static_cast<double>(most - rows[l].begin()), 7),
                             number_cell(*most, 15), number_cell(ratio, 3),
                             number_cell(static_cast<double>(idle), 7)});
    }
    for (size_t e = 0; !rows.empty() && e < rows[0].size(); ++e)
        map.column_labels.push_back(std::to_string(e));
    return {
        .id = id,
        .title = "Expert load: " + name,
        .caption = fmt::format("Rows of each expert over the mean of its layer. The busiest "
                               "expert has {}\xC3\x97 the mean.",
                               format_number(worst, 3)),
        .full_width = true,
        .draw = [map](std::string_view name_id, double width) { return draw(map, name_id, width); },
        .data = std::move(data)};
}

// Of the case with the most output of each result.
std::vector<NamedRow> fastest_rows(const std::vector<NamedRow>& rows) {
    std::vector<NamedRow> fastest;
    for (const NamedRow& named : rows) {
        auto found = std::ranges::find(fastest, named.bench, &NamedRow::bench);
        if (found == fastest.end())
            fastest.push_back(named);
        else if (found->row.number("output_tokens_per_s") < named.row.number("output_tokens_per_s"))
            *found = named;
    }
    return fastest;
}

constexpr size_t kMostRanks = 64;  // of a role, one by one; more are drawn in blocks

size_t block_of(size_t num_ranks) {
    return (num_ranks + kMostRanks - 1) / kMostRanks;
}

// "expert 12", or "expert 12 – 15" of a block.
std::vector<std::string> block_labels(const std::string& role, size_t num_ranks) {
    std::vector<std::string> labels;
    const size_t block = block_of(num_ranks);
    for (size_t first = 0; first < num_ranks; first += block) {
        const size_t last = std::min(first + block, num_ranks) - 1;
        labels.push_back(role + std::to_string(first));
        if (last > first) labels.back() += fmt::format(" \xE2\x80\x93 {}", last);
    }
    return labels;
}

// The largest value of each block of ranks.
std::vector<std::vector<double>> in_blocks(const std::vector<std::vector<double>>& waits) {
    const size_t rows = waits.size(), columns = waits[0].size();
    const size_t down = block_of(rows), across = block_of(columns);
    std::vector<std::vector<double>> blocks((rows + down - 1) / down);
    for (auto& row : blocks) row.resize((columns + across - 1) / across);
    for (size_t e = 0; e < rows; ++e)
        for (size_t a = 0; a < columns; ++a) {
            double& most = blocks[e / down][a / across];
            most = std::max(most, waits[e][a]);
        }
    return blocks;
}

// Every wait by itself.
Table all_waits(const std::vector<std::vector<double>>& waits) {
    Table table{.columns = {{.name = "Expert rank"}}};
    for (size_t a = 0; a < waits[0].size(); ++a)
        table.columns.push_back(
            {.name = fmt::format("attention {}", a), .unit = "\xC2\xB5s", .is_number = true});
    for (size_t e = 0; e < waits.size(); ++e) {
        std::vector<Cell>& cells = table.rows.emplace_back();
        cells.push_back({.text = fmt::format("expert {}", e)});
        for (const double us : waits[e]) cells.push_back(number_cell(us));
    }
    return table;
}

// By attention rank, over expert ranks.
Table mean_waits(const std::vector<std::vector<double>>& waits) {
    Table table{.columns = {{.name = "Attention rank", .is_number = true},
                            {.name = "Mean", .unit = "\xC2\xB5s", .is_number = true},
                            {.name = "Most", .unit = "\xC2\xB5s", .is_number = true},
                            {.name = "at expert rank", .is_number = true}}};
    for (size_t a = 0; a < waits[0].size(); ++a) {
        double sum = 0;
        size_t most = 0;
        for (size_t e = 0; e < waits.size(); ++e) {
            sum += waits[e][a];
            if (waits[e][a] > waits[most][a]) most = e;
        }
        table.rows.push_back({number_cell(static_cast<double>(a), 7),
                              number_cell(sum / static_cast<double>(waits.size())),
                              number_cell(waits[most][a]),
                              number_cell(static_cast<double>(most), 7)});
    }
    return table;
}

Figure wait_figure(const std::string& id, const std::string& name,
                   const std::vector<std::vector<double>>& waits) {
    HeatMap map{.text = {.title = "Waits: " + name,
                         .description = "How much later than the first the rows of each attention "
                                        "rank reached each expert rank",
                         .x_label = "attention rank",
                         .y_label = "expert rank"},
                .unit = "\xC2\xB5s",
                .row_labels = block_labels("expert ", waits.size()),
                .column_labels = block_labels("", waits[0].size()),
                .values = in_blocks(waits)};
    const bool whole = map.values.size() == waits.size() && map.values[0].size() == waits[0].size();
    return {
        .id = id,
        .title = "Waits: " + name,
        .caption =
            fmt::format("Microseconds that the rows of each attention rank (across) came after the "
                        "first, at each expert rank (down), on average. A column of strong colour: "
                        "a rank that others wait for.{}",
                        whole ? "" : " Of each block of ranks the most."),
        .draw = [map](std::string_view name_id, double width) { return draw(map, name_id, width); },
        .data = whole ? all_waits(waits) : mean_waits(waits)};
}

}  // namespace

Section phases_section(const Results& results) {
    Section section{.id = "phases", .title = "Where the time went"};
    const std::vector<NamedRow> rows = measured_rows(results);
    const std::vector<RolePhases> all = phases_of(rows);
    if (phase_names(all).empty()) {
        section.absent = "No result with phases (ferry bench throughput) was given.";
        return section;
    }
    section.blocks.push_back(phases_figure(all));
    if (Table table = exchange_table(rows); !table.rows.empty())
        section.blocks.push_back(std::move(table));
    return section;
}

Section expert_load_section(const Results& results) {
    Section section{.id = "expert-load", .title = "Expert load"};
    for (const LoadResult& result : results.loads) {
        if (result.rows.empty()) continue;
        std::vector<double> layers;
        std::vector<std::vector<double>> rows;
        for (size_t l = 0; l < result.rows.size(); ++l) {
            layers.push_back(static_cast<double>(result.first_layer) + static_cast<double>(l));
            rows.emplace_back(result.rows[l].begin(), result.rows[l].end());
        }
        section.blocks.push_back(
            load_figure("expert-load-" + slug(result.name), result.name, layers, rows));
    }
    for (const NamedRow& named : fastest_rows(measured_rows(results))) {
        std::vector<double> layers;
        std::vector<std::vector<double>> rows;
        for (const Row& layer : named.row.list("expert_load")) {
            layers.push_back(layer.number("layer"));
            rows.push_back(layer.numbers("rows"));
            if (rows.back().empty() || rows.back().size() != rows[0].size())
                layer.refuse("rows", "layers have no experts, or different numbers");
        }
        if (!rows.empty())
            section.blocks.push_back(
                load_figure("expert-load-" + slug(named.name), named.name, layers, rows));
    }
    if (section.blocks.empty())
        section.absent = "No expert load (log.expert_load, or ferry bench throughput) was given.";
    return section;
}

Section wait_section(const Results& results) {
    Section section{.id = "waits", .title = "Who waits for whom"};
    std::vector<NamedRow> rows = fastest_rows(measured_rows(results));
    for (const BenchResult* bench : results.of("exchange"))
        for (const Row& row : bench->rows())
            rows.push_back({bench, row,
                            prefix_of(*bench, results) + row.text("case") + ", " +
                                format_number(row.number("tokens"), 7) + " tokens"});
    size_t idx = 0;
    for (const NamedRow& named : rows) {
        const auto waits = named.row.matrix("wait_us");
        if (waits.empty() || waits[0].size() < 2) continue;
        if (++idx > 8) break;
        section.blocks.push_back(wait_figure(fmt::format("waits-{}", idx), named.name, waits));
    }
    if (section.blocks.empty())
        section.absent =
            "No waits between several attention ranks (ferry bench throughput, or "
            "ferry bench exchange) were given.";
    return section;
}

}  // namespace ferry::report
