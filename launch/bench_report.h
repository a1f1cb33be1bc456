// What a benchmark found: parameters, and a table of which every row is a measurement. One content,
// three forms: for people, JSON and CSV for machines.
#pragma once
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ferry {

using BenchValue = std::variant<std::string, int64_t, double>;

struct BenchColumn {
    std::string key;      // for machines
    std::string heading;  // for people; empty: for machines only
    int num_digits = 1;   // after the point
    double scale = 1;     // people read value * scale
};

class BenchReport {
  public:
    // `benchmark`: "layer".
    BenchReport(std::string benchmark, std::vector<BenchColumn> columns);

    // Everything that the figures depend on; also versions and machine.
    void add_parameter(const std::string& name, BenchValue value);
    // One value per column.
    void add_row(std::vector<BenchValue> values);
    // More of the last row, and of the whole, for JSON only: a key with a JSON text.
    void add_detail(const std::string& key, const std::string& json);
    void add_section(const std::string& key, const std::string& json);

    std::string to_text() const;  // columns aligned, empty line where the first column changes
    std::string to_json() const;  // {"benchmark", sections, "parameters": {}, "rows": [{}]}
    std::string to_csv() const;   // RFC 4180, parameters as comment lines

    // Prints the table, and writes the files that are asked for; "-" instead prints that form only.
    // Throws Error(input) for a file that cannot be written.
    void publish(const std::string& json_path, const std::string& csv_path) const;

  private:
    std::string benchmark_;
    std::vector<BenchColumn> columns_;
    std::vector<std::pair<std::string, BenchValue>> parameters_;
    std::vector<std::vector<BenchValue>> rows_;
    using Texts = std::vector<std::pair<std::string, std::string>>;
    std::vector<Texts> details_;  // of each row
    Texts sections_;
};

}  // namespace ferry
