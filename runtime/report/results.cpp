#include "runtime/report/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "runtime/input_file.h"
#include "runtime/json_text.h"
#include "runtime/placements.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{2} << 30;
constexpr const char* kBenchmarks[] = {"exchange", "layer", "load", "scaling", "throughput"};

std::string read(const std::string& path) {
    return read_text_file(path, kMaxFileBytes, ErrorKind::input);
}

OrderedJson parse(const std::string& text, const std::string& path) try {
    return OrderedJson::parse(text);
} catch (const OrderedJson::exception& error) {
    const std::string what = error.what();
    const size_t begin = what.find("] ");
    throw Error(ErrorKind::input, "{}: not valid JSON: {}", path,
                in_quotes(what.substr(begin == std::string::npos ? 0 : begin + 2)));
}

std::string in_words(const OrderedJson& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_float()) return format_number(value.get<double>(), 6);
    return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

BenchResult take_bench(OrderedJson json, const std::string& path) {
    BenchResult result{.path = path,
                       .name = {},
                       .benchmark = {},
                       .json = std::make_shared<const OrderedJson>(std::move(json))};
    result.benchmark = result.whole().text("benchmark");
    if (std::ranges::find(kBenchmarks, result.benchmark) == std::end(kBenchmarks))
        throw Error(ErrorKind::input, "{}: benchmark {}: this version knows {}", path,
                    in_quotes(result.benchmark), fmt::join(kBenchmarks, ", "));
    if (!result.whole().has("rows"))
        throw Error(ErrorKind::input, "{}: rows: is missing; is the file whole?", path);
    result.whole().inside("parameters");
    if (result.rows().empty())
        throw Error(ErrorKind::input, "{}: rows: has none, nothing was measured", path);
    return result;
}

LoadResult take_load(const std::string& text, const std::string& path) try {
    ExpertLoad load = parse_expert_load(text, path);
    LoadResult result{path, {}, load.first_layer, std::move(load.rows)};
    for (const auto& layer : result.rows)
        if (layer.empty() || layer.size() != result.rows[0].size())
            throw Error(ErrorKind::input, "{}: rows: layers have no experts, or different numbers",
                        path);
    return result;
} catch (const Error& error) {
    throw Error(ErrorKind::input, error.what());
}

void take_file(const std::string& path, Results& results) {
    const std::string text = read(path);
    // A trace is recognised before it is parsed: it may be large.
    const size_t begin = text.find_first_not_of(" \t\r\n");
    const bool may_be_trace = text.substr(0, 4096).find("\"traceEvents\"") != std::string::npos;
    if (begin != std::string::npos && text[begin] == '{' && may_be_trace) {
        results.traces.push_back({path, {}, parse_trace(text, path)});
        return;
    }
    OrderedJson json = parse(text, path);
    if (json.is_object() && json.contains("benchmark"))
        results.benches.push_back(take_bench(std::move(json), path));
    else if (json.is_object() && json.contains("traceEvents"))
        results.traces.push_back({path, {}, parse_trace(text, path)});
    else if (json.is_object() && json.contains("first_layer"))
        results.loads.push_back(take_load(text, path));
    else
        throw Error(ErrorKind::input,
                    "{}: is neither a benchmark's result (ferry bench ... --json), nor a trace "
                    "(log.trace), nor an expert load (log.expert_load)",
                    path);
}

// The file's name without folders and ending, with as many folders as make it differ from others.
void name_results(const std::vector<std::pair<std::string, std::string*>>& named) {
    std::set<std::string> taken;
    for (const auto& [path, name] : named) {
        const std::filesystem::path file(path);
        std::filesystem::path folder = file.parent_path();
        std::string candidate = file.stem().string();
        while (taken.contains(candidate) && folder.has_filename()) {
            candidate = folder.filename().string() + "/" + candidate;
            folder = folder.parent_path();
        }
        const std::string base = candidate;
        for (int again = 2; taken.contains(candidate); ++again)
            candidate = base + " " + std::to_string(again);
        taken.insert(candidate);
        *name = candidate;
    }
}

}  // namespace

void Row::refuse(const char* key, const char* what) const {
    throw Error(ErrorKind::input, "{}: {}: {}", where_, key, what);
}

const OrderedJson* Row::find(const char* key) const {
    if (!json_->is_object()) throw Error(ErrorKind::input, "{}: must be an object", where_);
    const auto found = json_->find(key);
    return found == json_->end() || found->is_null() ? nullptr : &*found;
}

const OrderedJson& Row::need(const char* key) const {
    const OrderedJson* value = find(key);
    if (value == nullptr) refuse(key, "is missing");
    return *value;
}

double Row::number(const char* key) const {
    if (!need(key).is_number()) refuse(key, "must be a number");
    return need(key).get<double>();
}

std::string Row::text(const char* key) const {
    if (!need(key).is_string()) refuse(key, "must be a text");
    return need(key).get<std::string>();
}

std::optional<double> Row::find_number(const char* key) const {
    return find(key) == nullptr ? std::nullopt : std::optional(number(key));
}

std::optional<std::string> Row::find_text(const char* key) const {
    return find(key) == nullptr ? std::nullopt : std::optional(text(key));
}

Row Row::inside(const char* key) const {
    static const OrderedJson kEmpty = OrderedJson::object();
    const OrderedJson* value = find(key);
    if (value == nullptr) return Row(kEmpty, where_ + ": " + key);
    if (!value->is_object()) refuse(key, "must be an object");
    return Row(*value, where_ + ": " + key);
}

std::vector<Row> Row::list(const char* key) const {
    const OrderedJson* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) refuse(key, "must be a list");
    std::vector<Row> rows;
    for (size_t i = 0; i < value->size(); ++i) {
        if (!(*value)[i].is_object()) refuse(key, "must be a list of objects");
        rows.emplace_back((*value)[i], fmt::format("{}: {}[{}]", where_, key, i));
    }
    return rows;
}

std::vector<double> Row::numbers(const char* key) const {
    const OrderedJson* value = find(key);
    return value == nullptr ? std::vector<double>() : numbers_of(*value, key);
}

std::vector<std::vector<double>> Row::matrix(const char* key) const {
    const OrderedJson* value = find(key);
    std::vector<std::vector<double>> matrix;
    if (value == nullptr) return matrix;
    if (!value->is_array()) refuse(key, "must be a list of lists of numbers");
    for (const OrderedJson& line : *value) {
        matrix.push_back(numbers_of(line, key));
        if (matrix.back().size() != matrix[0].size()) refuse(key, "has lines of different lengths");
    }
    return matrix;
}

std::vector<double> Row::numbers_of(const OrderedJson& list, const char* key) const {
    std::vector<double> numbers;
    if (!list.is_array()) refuse(key, "must hold lists of numbers");
    for (const OrderedJson& number : list) {
        if (!number.is_number()) refuse(key, "must hold lists of numbers");
        numbers.push_back(number.get<double>());
    }
    return numbers;
}

std::vector<std::string> Row::keys() const {
    std::vector<std::string> keys;
    if (json_->is_object())
        for (const auto& [key, value] : json_->items()) keys.push_back(key);
    return keys;
}

std::string Row::words(const char* key) const {
    const OrderedJson* value = find(key);
    return value == nullptr ? "\xE2\x80\x93" : in_words(*value);
}

std::vector<std::string> Row::list_words(const char* key) const {
    std::vector<std::string> all;
    if (const OrderedJson* value = find(key); value != nullptr && value->is_array())
        for (const OrderedJson& one : *value) all.push_back(in_words(one));
    return all;
}

bool Row::is_false(const char* key) const {
    const OrderedJson* value = find(key);
    return value != nullptr && value->is_boolean() && !value->get<bool>();
}

std::vector<Row> BenchResult::rows() const {
    return whole().list("rows");
}

std::vector<const BenchResult*> Results::of(const std::string& benchmark) const {
    std::vector<const BenchResult*> found;
    for (const BenchResult& bench : benches)
        if (bench.benchmark == benchmark) found.push_back(&bench);
    return found;
}

Results read_results(const std::vector<std::string>& paths, const std::string& baseline) {
    Results results;
    for (const std::string& path : paths) take_file(path, results);
    if (!baseline.empty()) {
        Results old;
        take_file(baseline, old);
        if (old.benches.empty())
            throw Error(ErrorKind::usage, "--baseline: {} is no result of a benchmark", baseline);
        results.baseline = std::move(old.benches[0]);
    }
    std::vector<std::pair<std::string, std::string*>> named;
    if (results.baseline) named.emplace_back(results.baseline->path, &results.baseline->name);
    for (BenchResult& bench : results.benches) named.emplace_back(bench.path, &bench.name);
    for (LoadResult& load : results.loads) named.emplace_back(load.path, &load.name);
    for (TraceResult& trace : results.traces) named.emplace_back(trace.path, &trace.name);
    name_results(named);
    return results;
}

}  // namespace ferry::report
