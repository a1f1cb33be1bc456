#include "runtime/report/sections.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace ferry::report {

std::string prefix_of(const BenchResult& bench, const Results& results) {
    return results.of(bench.benchmark).size() > 1 ? bench.name + ": " : "";
}

std::vector<NamedRow> measured_rows(const Results& results) {
    std::vector<NamedRow> found;
    for (const BenchResult* bench : results.of("throughput"))
        for (const Row& row : bench->rows())
            if (row.find_text("skipped").value_or("").empty())
                found.push_back({bench, row, prefix_of(*bench, results) + row.text("case")});
    return found;
}

bool counts(const Row& row) {
    return row.find_text("valid").value_or("yes") != "NO" &&
           row.find_text("check").value_or("same") == "same" &&
           row.find_number("wrong").value_or(0) == 0;
}

Table table_of(const std::vector<NamedRow>& rows, const std::string& first_column,
               const std::vector<Field>& fields) {
    Table table{.columns = {{.name = first_column}}};
    std::vector<Field> present;
    for (const Field& field : fields) {
        // A column of zeros only (tokens/s per GPU without one) says nothing.
        const bool any = std::ranges::any_of(rows, [&](const NamedRow& named) {
            return named.row.find_number(field.key).value_or(0) != 0;
        });
        if (!any) continue;
        present.push_back(field);
        table.columns.push_back({.name = field.name, .unit = field.unit, .is_number = true});
    }
    for (const NamedRow& named : rows) {
        std::vector<Cell>& cells = table.rows.emplace_back();
        cells.push_back({.text = named.name});
        for (const Field& field : present) {
            const std::optional<double> value = named.row.find_number(field.key);
            Cell cell =
                number_cell(value ? std::optional(*value * field.scale) : value, field.digits);
            cell.value = value;
            cells.push_back(cell);
        }
    }
    return table;
}

Document make_document(const Results& results, const std::string& title) {
    Document document{.title = title, .subtitle = {}, .sections = {}};
    std::set<std::string> files;
    std::vector<std::string> kinds;
    const auto add = [&](const std::string& kind) {
        if (std::ranges::find(kinds, kind) == kinds.end()) kinds.push_back(kind);
    };
    for (const BenchResult& bench : results.benches) add("bench " + bench.benchmark);
    if (!results.loads.empty()) add("expert load");
    if (!results.traces.empty()) add("trace");
    const size_t num = results.benches.size() + results.loads.size() + results.traces.size();
    document.subtitle =
        fmt::format("{} result{}: {}", num, num == 1 ? "" : "s", fmt::join(kinds, ", "));
    if (results.baseline) document.subtitle += "; compared with " + results.baseline->name;
    for (const auto make :
         {overview_section, runs_section, comparison_section, throughput_section, latency_section,
          scaling_section, frontier_section, phases_section, expert_load_section, wait_section,
          exchange_section, layer_section, loading_section, timeline_section})
        document.sections.push_back(make(results));
    std::erase_if(document.sections, [](const Section& section) {
        return section.blocks.empty() && section.absent.empty();
    });
    // Names that differ in other characters than letters and digits have the same slug.
    std::set<std::string> ids;
    for (Section& section : document.sections)
        for (Block& block : section.blocks)
            if (auto* figure = std::get_if<Figure>(&block)) {
                const std::string base = figure->id;
                for (int again = 2; !ids.insert(figure->id).second; ++again)
                    figure->id = fmt::format("{}-{}", base, again);
            }
    // What is there comes first, what is not is named at the end.
    std::ranges::stable_partition(document.sections,
                                  [](const Section& section) { return !section.blocks.empty(); });
    return document;
}

}  // namespace ferry::report
