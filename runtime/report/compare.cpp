#include "runtime/report/compare.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/check.h"
#include "base/median.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

struct Metric {
    const char* key;
    const char* name;
    const char* unit;
    bool higher_is_better = false;
    const char* best_key = nullptr;  // best repetition, beside the median in `key`
};

struct Benchmark {
    const char* name;
    std::vector<const char*> keys;  // what identifies a measurement
    std::vector<Metric> metrics;
};

const std::vector<Benchmark>& benchmarks() {
    static const std::vector<Benchmark> list{
        {"exchange",
         {"case", "tokens"},
         {{"both_us", "time of an exchange", "\xC2\xB5s", false, "both_min_us"}}},
        {"layer",
         {"workload", "stage"},
         {{"median_us", "time of a stage", "\xC2\xB5s", false, "best_us"}}},
        {"load", {"layout", "state"}, {{"load_s", "time to load", "s"}}},
        {"scaling", {"kind", "layout"}, {{"output_tokens_per_s", "output", "tokens/s", true}}},
        {"throughput",
         {"case"},
         {{"output_tokens_per_s", "output", "tokens/s", true},
          {"prefill_tokens_per_s", "prefill", "tokens/s", true},
          {"ttft_p50_ms", "time to first token (p50)", "ms"},
          {"tpot_p50_ms", "time per output token (p50)", "ms"}}}};
    return list;
}

const Benchmark& benchmark_of(const std::string& name) {
    return *std::ranges::find(benchmarks(), name, &Benchmark::name);
}

std::string identity(const Row& row, const Benchmark& benchmark) {
    std::string text;
    for (const char* key : benchmark.keys) {
        if (!row.has(key)) continue;
        text += (text.empty() ? "" : ", ") + row.words(key);
        if (std::string_view(key) == "tokens") text += " tokens";
    }
    return text;
}

double row_spread(const Row& row, const Metric& metric, double middle) {
    std::vector<double> repetitions;
    for (const Row& repetition : row.list("repetitions"))
        if (const auto value = repetition.find_number(metric.key)) repetitions.push_back(*value);
    if (repetitions.size() > 1) return spread_of(repetitions);
    if (metric.best_key != nullptr && middle > 0)
        if (const auto best = row.find_number(metric.best_key))
            return std::abs(middle - *best) / middle;
    return row.find_number("spread").value_or(0) / 2;  // from the best to the worst
}

bool was_measured(const Row& row) {
    return row.find_text("skipped").value_or("").empty();
}

void compare_rows(const Row& old, const Row& now, const Benchmark& benchmark,
                  std::vector<Comparison>& all) {
    for (const Metric& metric : benchmark.metrics) {
        const auto before = old.find_number(metric.key), after = now.find_number(metric.key);
        if (!before || !after || !(*before > 0) || !(*after > 0)) continue;
        Comparison comparison{.name = identity(now, benchmark),
                              .metric = metric.name,
                              .unit = metric.unit,
                              .old_value = *before,
                              .new_value = *after};
        comparison.change = *after / *before - 1;
        comparison.noise = std::max(
            kLeastNoise, row_spread(old, metric, *before) + row_spread(now, metric, *after));
        comparison.verdict = judge(comparison.change, comparison.noise, metric.higher_is_better);
        all.push_back(std::move(comparison));
    }
}

}  // namespace

const char* const kNoiseRule =
    "A difference counts when it exceeds the noise: the sum of both results' spreads, at least 2 "
    "%. The spread of a measurement is half the distance between its smallest and largest "
    "repetition, over its median; where only the best and the median repetition are known, their "
    "distance over the median.";

double spread_of(const std::vector<double>& repetitions) {
    if (repetitions.size() < 2) return 0;
    const auto [least, most] = std::ranges::minmax(repetitions);
    const double middle = median(repetitions);
    return middle > 0 ? (most - least) / 2 / middle : 0;
}

Verdict judge(double change, double noise, bool higher_is_better) {
    if (!(std::abs(change) > noise)) return Verdict::within_noise;
    return (change > 0) == higher_is_better ? Verdict::better : Verdict::worse;
}

std::vector<Comparison> compare(const BenchResult& old, const BenchResult& now,
                                std::vector<std::string>* missing) {
    FERRY_CHECK(old.benchmark == now.benchmark);
    const Benchmark& benchmark = benchmark_of(now.benchmark);
    const std::vector<Row> old_rows = old.rows();
    std::map<std::string, const Row*> by_name;
    for (const Row& row : old_rows)
        if (was_measured(row)) by_name.emplace(identity(row, benchmark), &row);
    std::vector<Comparison> all;
    for (const Row& row : now.rows()) {
        if (!was_measured(row)) continue;
        const auto found = by_name.find(identity(row, benchmark));
        if (found == by_name.end()) {
            if (missing != nullptr) missing->push_back(identity(row, benchmark) + " (new only)");
            continue;
        }
        compare_rows(*found->second, row, benchmark, all);
        by_name.erase(found);
    }
    if (missing != nullptr)
        for (const auto& [name, row] : by_name) missing->push_back(name + " (baseline only)");
    return all;
}

std::vector<std::string> differences(const BenchResult& old, const BenchResult& now) {
    constexpr const char* kTold[] = {"versions", "environment", "ferry", "hosts", "machine"};
    constexpr const char* kOfWorkload[] = {"prefix_share", "seed", "warmup_requests"};
    std::vector<std::string> all;
    const auto look = [&](const Row& before, const Row& after, const std::string& key) {
        const std::string was = before.words(key.c_str()), is = after.words(key.c_str());
        if (was != is) all.push_back(fmt::format("{}: {}, was {}", words_of(key), is, was));
    };
    const Row before = old.whole().inside("parameters"), after = now.whole().inside("parameters");
    std::vector<std::string> keys = after.keys();
    for (const std::string& key : before.keys())
        if (!after.has(key.c_str())) keys.push_back(key);
    for (const std::string& key : keys) {
        const bool is_figure = key.find(", ") != std::string::npos;  // "decode 1 at 512, experts"
        if (!is_figure && std::ranges::find(kTold, key) == std::end(kTold))
            look(before, after, key);
    }
    for (const char* key : kOfWorkload)
        look(old.whole().inside("workload"), now.whole().inside("workload"), key);
    return all;
}

}  // namespace ferry::report
