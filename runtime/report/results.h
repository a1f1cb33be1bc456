// What `ferry report` reads: results of benchmarks, expert loads and traces, each file told by its
// content.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/report/trace_file.h"

namespace ferry::report {

using OrderedJson = nlohmann::ordered_json;

// One row of a benchmark's table. Throws Error(input) "FILE: rows[3].wall_s: must be a number".
class Row {
  public:
    Row(const OrderedJson& json, std::string where) : json_(&json), where_(std::move(where)) {}

    double number(const char* key) const;
    std::string text(const char* key) const;
    // Nothing when the key is not there.
    std::optional<double> find_number(const char* key) const;
    std::optional<std::string> find_text(const char* key) const;
    // An object inside; the row of an empty object when it is not there.
    Row inside(const char* key) const;
    // Objects in a list inside; empty when it is not there.
    std::vector<Row> list(const char* key) const;
    // Lists of numbers; empty when they are not there. Lines of a matrix are equally long.
    std::vector<double> numbers(const char* key) const;
    std::vector<std::vector<double>> matrix(const char* key) const;
    std::vector<std::string> keys() const;
    bool has(const char* key) const { return find(key) != nullptr; }
    // Whatever it is, in words; "–" when it is not there.
    std::string words(const char* key) const;
    std::vector<std::string> list_words(const char* key) const;
    bool is_false(const char* key) const;
    // Throws Error(input) "FILE: rows[3]: key: what".
    [[noreturn]] void refuse(const char* key, const char* what) const;

  private:
    const OrderedJson* find(const char* key) const;
    const OrderedJson& need(const char* key) const;
    std::vector<double> numbers_of(const OrderedJson& list, const char* key) const;

    const OrderedJson* json_;
    std::string where_;
};

// {"benchmark", "parameters": {}, "rows": [{}]}, as `ferry bench … --json` writes it.
struct BenchResult {
    std::string path;
    std::string name;       // short, unique among the results of a report
    std::string benchmark;  // exchange, layer, load, scaling, throughput
    std::shared_ptr<const OrderedJson> json;

    std::vector<Row> rows() const;
    Row whole() const { return Row(*json, path); }
};

// Rows of each expert of each MoE layer (runtime/placements.h).
struct LoadResult {
    std::string path, name;
    int64_t first_layer = 0;
    std::vector<std::vector<int64_t>> rows{};
};

struct TraceResult {
    std::string path, name;
    TraceFile trace;
};

struct Results {
    std::vector<BenchResult> benches;  // in the order given
    std::vector<LoadResult> loads;
    std::vector<TraceResult> traces;
    std::optional<BenchResult> baseline{};

    std::vector<const BenchResult*> of(const std::string& benchmark) const;
};

// Throws Error(input) that names the file and what is wrong with it; Error(usage) for a baseline
// that is no benchmark's result. `baseline` may be empty.
Results read_results(const std::vector<std::string>& paths, const std::string& baseline);

}  // namespace ferry::report
