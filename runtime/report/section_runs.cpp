// What was run, on what, and whether it counts.
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "runtime/report/sections.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

std::vector<const BenchResult*> all_benches(const Results& results) {
    std::vector<const BenchResult*> all;
    if (results.baseline) all.push_back(&*results.baseline);
    for (const BenchResult& bench : results.benches) all.push_back(&bench);
    return all;
}

// Names down, results across.
class SideBySide {
  public:
    explicit SideBySide(size_t num) : num_(num) {}
    void set(const std::string& name, size_t result, const std::string& value) {
        auto [found, is_new] = idx_.try_emplace(name, rows_.size());
        if (is_new) rows_.push_back({name, std::vector<std::string>(num_, "\xE2\x80\x93")});
        rows_[found->second].second[result] = value;
    }
    Table table(const std::vector<const BenchResult*>& benches, const std::string& caption) const {
        Table table{.caption = caption, .columns = {{.name = ""}}};
        for (const BenchResult* bench : benches) table.columns.push_back({.name = bench->name});
        for (const auto& [name, values] : rows_) {
            std::vector<Cell>& cells = table.rows.emplace_back();
            cells.push_back({.text = name});
            for (const std::string& value : values) cells.push_back({.text = value});
        }
        return table;
    }

  private:
    size_t num_;
    std::vector<std::pair<std::string, std::vector<std::string>>> rows_;
    std::map<std::string, size_t> idx_;
};

// "ferry 0.1.0 (Release, GNU 12);  MPI   Open MPI v4   ranks, transport mpi;...": as benchmarks
// without a versions section write it.
std::vector<std::pair<std::string, std::string>> split_versions(const std::string& text) {
    std::vector<std::pair<std::string, std::string>> versions;
    size_t begin = 0;
    while (begin < text.size()) {
        const size_t end = std::min(text.find(';', begin), text.size());
        std::string line = text.substr(begin, end - begin);
        begin = end + 1;
        line.erase(0, line.find_first_not_of(' '));
        const size_t name = line.find(' ');
        if (name == std::string::npos) continue;
        std::string value = line.substr(line.find_first_not_of(' ', name));
        value.resize(std::min(value.find("   "), value.size()));
        versions.emplace_back(line.substr(0, name), value);
    }
    return versions;
}

std::string validity(const BenchResult& bench) {
    int64_t wrong = 0, different = 0, invalid = 0, doubtful = 0, checked = 0;
    for (const Row& row : bench.rows()) {
        if (!row.find_text("skipped").value_or("").empty()) continue;
        ++checked;
        wrong += static_cast<int64_t>(row.find_number("wrong").value_or(0));
        different += row.find_text("check").value_or("same") != "same" ? 1 : 0;
        const std::string valid = row.find_text("valid").value_or("yes");
        doubtful += valid == "doubt" ? 1 : 0;
        invalid += valid != "yes" && valid != "doubt" ? 1 : 0;
    }
    if (wrong > 0) return fmt::format("INVALID: {} elements came back wrong", wrong);
    if (different > 0) return fmt::format("INVALID: bits differ in {} rows", different);
    if (invalid > 0) return fmt::format("INVALID: {} of {} cases", invalid, checked);
    if (doubtful > 0) return fmt::format("in doubt: {} of {} cases", doubtful, checked);
    if (bench.benchmark == "exchange") return "valid: no element came back wrong";
    if (bench.benchmark == "layer") return "valid: the same bits in every repetition";
    return fmt::format("valid: all {} cases", checked);
}

// "2 of 64" where the ranks were bound to some of them.
std::string cores_of(const Row& host) {
    const std::string all = host.words("cores");
    if (!host.has("usable_cores") || host.words("usable_cores") == all) return all;
    return host.words("usable_cores") + " of " + all;
}

Table hosts_table(const std::vector<const BenchResult*>& benches) {
    Table table{.caption = "Hosts",
                .columns = {{.name = "Result"},
                            {.name = "Host"},
                            {.name = "CPU"},
                            {.name = "Cores", .is_number = true},
                            {.name = "Memory", .is_number = true},
                            {.name = "GPUs", .is_number = true},
                            {.name = "Kernel"},
                            {.name = "Ranks"}}};
    for (const BenchResult* bench : benches)
        for (const Row& host : bench->whole().list("hosts")) {
            const std::optional<double> memory = host.find_number("memory_bytes");
            table.rows.push_back(
                {{.text = bench->name},
                 {.text = host.words("host")},
                 {.text = host.words("cpu")},
                 {.text = cores_of(host)},
                 {.text = memory ? format_quantity(*memory, "B") : "\xE2\x80\x93", .value = memory},
                 {.text = host.words("gpus")},
                 {.text = host.words("kernel")},
                 {.text = host.words("ranks")}});
        }
    return table;
}

// Loading and scaling are told by layout.
std::string case_of(const Row& row) {
    if (const auto name = row.find_text("case")) return *name;
    std::string name;
    for (const char* key : {"kind", "layout", "state"})
        if (const auto part = row.find_text(key)) name += (name.empty() ? "" : " ") + *part;
    return name;
}

// Cases that do not count, that are in doubt or were not run, and why.
Table doubts_table(const std::vector<const BenchResult*>& benches) {
    Table table{.caption = "Cases that do not count, or are in doubt",
                .columns = {{.name = "Result"}, {.name = "Case"}, {.name = "Why"}}};
    for (const BenchResult* bench : benches)
        for (const Row& row : bench->rows()) {
            const std::string skipped = row.find_text("skipped").value_or("");
            std::string why = skipped.empty() ? "" : "not run: " + skipped;
            const Row detail = row.inside("validity");
            const std::string valid = row.find_text("valid").value_or("yes");
            const bool in_doubt = valid == "doubt";
            if (why.empty() && valid != "yes") {
                why = in_doubt ? "in doubt" : "invalid";
                for (const std::string& key : detail.keys())
                    if (detail.is_false(key.c_str()) && key != "valid") why += ", not " + key;
            }
            for (const std::string& doubt : detail.list_words("doubts"))
                why += (why.empty() ? "" : "; ") + doubt;
            if (!why.empty())
                table.rows.push_back(
                    {{.text = bench->name},
                     {.text = case_of(row)},
                     {.text = why, .style = skipped.empty() && !in_doubt ? "bad" : ""}});
        }
    return table;
}

}  // namespace

Section runs_section(const Results& results) {
    Section section{.id = "runs", .title = "What was run"};
    const std::vector<const BenchResult*> benches = all_benches(results);
    SideBySide what(benches.size()), versions(benches.size()), config(benches.size());
    for (size_t b = 0; b < benches.size(); ++b) {
        const Row whole = benches[b]->whole();
        what.set("file", b, benches[b]->path);
        what.set("benchmark", b, benches[b]->benchmark);
        what.set("validity", b, validity(*benches[b]));
        for (const char* key : {"time", "command"})
            if (const auto value = whole.find_text(key)) what.set(key, b, *value);
        const Row parameters = whole.inside("parameters");
        for (const std::string& key : parameters.keys()) {
            if (key != "versions") {
                what.set(key, b, parameters.words(key.c_str()));
                continue;
            }
            for (const auto& [library, version] : split_versions(parameters.words("versions")))
                versions.set(library, b, version);
        }
        const auto add_all = [&](const char* part, const std::string& prefix, SideBySide& to) {
            const Row values = whole.inside(part);
            for (const std::string& key : values.keys())
                to.set(prefix + key, b, values.words(key.c_str()));
        };
        add_all("versions", "", versions);
        add_all("workload", "workload.", config);
        add_all("config", "", config);
    }
    if (!benches.empty()) {
        section.blocks.push_back(what.table(benches, "Benchmarks"));
        if (Table doubts = doubts_table(benches); !doubts.rows.empty())
            section.blocks.push_back(doubts);
        if (Table hosts = hosts_table(benches); !hosts.rows.empty())
            section.blocks.push_back(hosts);
        const auto add_folded = [&](const SideBySide& values, const std::string& caption) {
            Table table = values.table(benches, caption);
            table.folded = true;
            if (!table.rows.empty()) section.blocks.push_back(table);
        };
        add_folded(versions, "Versions of all libraries");
        add_folded(config, "Full configuration and workload");
    }
    Table files{.caption = "Other files", .columns = {{.name = "File"}, {.name = "Content"}}};
    for (const LoadResult& load : results.loads)
        files.rows.push_back(
            {{.text = load.path},
             {.text = fmt::format("expert load: {} MoE layers of {} experts", load.rows.size(),
                                  load.rows.empty() ? 0 : load.rows[0].size())}});
    for (const TraceResult& trace : results.traces)
        files.rows.push_back(
            {{.text = trace.path},
             {.text = fmt::format("trace: {} spans on {} ranks", trace.trace.spans.size(),
                                  trace.trace.rank_names.size())}});
    if (!files.rows.empty()) section.blocks.push_back(files);
    return section;
}

}  // namespace ferry::report
