#include "launch/bench_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "launch/text_output.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

std::string for_people(const BenchValue& value, const BenchColumn& column) {
    if (const auto* text = std::get_if<std::string>(&value)) return *text;
    const auto* whole = std::get_if<int64_t>(&value);
    if (whole != nullptr && column.scale == 1) return fmt::format("{}", *whole);
    const double number =
        (whole != nullptr ? static_cast<double>(*whole) : std::get<double>(value)) * column.scale;
    return number == 0 ? "-" : fmt::format("{:.{}f}", number, column.num_digits);
}

std::string for_machines(const BenchValue& value) {
    return std::visit([](const auto& known) { return fmt::format("{}", known); }, value);
}

std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) {
        if (c == '"') quoted += c;
        quoted += c;
    }
    quoted += '"';
    return quoted;
}

Json json_of(const BenchValue& value) {
    return std::visit([](const auto& known) { return Json(known); }, value);
}

}  // namespace

BenchReport::BenchReport(std::string benchmark, std::vector<BenchColumn> columns)
    : benchmark_(std::move(benchmark)), columns_(std::move(columns)) {}

void BenchReport::add_parameter(const std::string& name, BenchValue value) {
    parameters_.emplace_back(name, std::move(value));
}

void BenchReport::add_row(std::vector<BenchValue> values) {
    FERRY_CHECK(values.size() == columns_.size(), "{} values for {} columns", values.size(),
                columns_.size());
    rows_.push_back(std::move(values));
    details_.emplace_back();
}

void BenchReport::add_detail(const std::string& key, const std::string& json) {
    details_.back().emplace_back(key, json);
}

void BenchReport::add_section(const std::string& key, const std::string& json) {
    sections_.emplace_back(key, json);
}

std::string BenchReport::to_text() const {
    std::string text;
    for (const auto& [name, value] : parameters_)
        text += fmt::format("# {}: {}\n", name, for_people(value, {}));
    std::vector<std::vector<std::string>> cells{{}};
    std::vector<size_t> shown;
    for (size_t i = 0; i < columns_.size(); ++i)
        if (!columns_[i].heading.empty()) shown.push_back(i);
    for (const size_t i : shown) cells[0].push_back(columns_[i].heading);
    for (const auto& row : rows_) {
        std::vector<std::string>& line = cells.emplace_back();
        for (const size_t i : shown) line.push_back(for_people(row[i], columns_[i]));
    }
    std::vector<size_t> widths(shown.size(), 0);
    for (const auto& line : cells)
        for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
    for (size_t row = 0; row < cells.size(); ++row) {
        if (row > 1 && cells[row][0] != cells[row - 1][0]) text += "\n";
        std::string line;
        for (size_t i = 0; i < cells[row].size(); ++i) {
            const bool is_text = !rows_.empty() && rows_[0][shown[i]].index() == 0;
            line += is_text ? fmt::format("{:<{}}  ", cells[row][i], widths[i])
                            : fmt::format("{:>{}}  ", cells[row][i], widths[i]);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        text += line;
        text += '\n';
    }
    return text;
}

std::string BenchReport::to_json() const {
    Json json;
    json["benchmark"] = benchmark_;
    for (const auto& [key, text] : sections_) json[key] = Json::parse(text);
    json["parameters"] = Json::object();
    for (const auto& [name, value] : parameters_) json["parameters"][name] = json_of(value);
    json["rows"] = Json::array();
    for (size_t r = 0; r < rows_.size(); ++r) {
        Json object;
        for (size_t i = 0; i < columns_.size(); ++i) object[columns_[i].key] = json_of(rows_[r][i]);
        for (const auto& [key, text] : details_[r]) object[key] = Json::parse(text);
        json["rows"].push_back(std::move(object));
    }
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string BenchReport::to_csv() const {
    std::string text = fmt::format("# benchmark: {}\n", benchmark_);
    for (const auto& [name, value] : parameters_) {
        std::string line = for_machines(value);
        std::replace(line.begin(), line.end(), '\n', ' ');
        text += fmt::format("# {}: {}\n", name, line);
    }
    const auto add_line = [&](auto&& field) {
        for (size_t i = 0; i < columns_.size(); ++i) {
            if (i > 0) text += ',';
            text += field(i);
        }
        text += '\n';
    };
    add_line([&](size_t i) { return csv_field(columns_[i].key); });
    for (const auto& row : rows_)
        add_line([&](size_t i) { return csv_field(for_machines(row[i])); });
    return text;
}

void BenchReport::publish(const std::string& json_path, const std::string& csv_path) const {
    if (json_path != "-" && csv_path != "-") print_text(to_text());
    if (!json_path.empty()) write_text(json_path, to_json());
    if (!csv_path.empty()) write_text(csv_path, to_csv());
}

}  // namespace ferry
