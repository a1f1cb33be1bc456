#include "runtime/report/sweeps.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace ferry::report {
namespace {

// What benchmarks sweep, and where they write.
bool may_differ(const std::string& key) {
    constexpr const char* kSwept[] = {"engine.max_batch", "engine.micro_batches", "engine.threads",
                                      "exchange.mode", "exchange.transport"};
    return key.starts_with("layout.") || key.starts_with("log.") ||
           std::ranges::find(kSwept, key) != std::end(kSwept);
}

// The same text for results that can be parts of one sweep; empty where a result does not say.
std::string setting_of(const BenchResult& bench) {
    const Row whole = bench.whole(), workload = whole.inside("workload");
    if (workload.keys().empty()) return "";
    std::string text;
    for (const char* key : {"model", "layers", "ferry"})
        text += whole.inside("parameters").words(key) + '\n';
    for (const std::string& key : workload.keys())
        if (key != "rate") text += workload.words(key.c_str()) + '\n';
    const Row config = whole.inside("config");
    for (const std::string& key : config.keys())
        if (!may_differ(key)) text += config.words(key.c_str()) + '\n';
    std::set<std::string> machines;
    for (const Row& host : whole.list("hosts"))
        machines.insert(host.words("cpu") + ", GPUs: " + host.words("gpus"));
    return text + fmt::format("{}", fmt::join(machines, "\n"));
}

std::set<std::string> cases_of(const BenchResult& bench) {
    std::set<std::string> cases;
    for (const Row& row : bench.rows()) cases.insert(row.words("case") + " " + row.words("rate"));
    return cases;
}

// How the names of a sweep's files begin; the first of them when they do not begin alike.
std::string common_name(const std::string& first, const std::string& next) {
    const auto end = std::ranges::mismatch(first, next).in1;
    std::string common(first.begin(), end);
    while (!common.empty() && std::string_view("-_. ").find(common.back()) != std::string::npos)
        common.pop_back();
    return common.empty() ? first : common;
}

}  // namespace

Sweeps::Sweeps(const Results& results) {
    struct Sweep {
        std::string setting, first_name;
        std::set<std::string> cases;
    };
    std::vector<Sweep> sweeps;
    for (const BenchResult* bench : results.of("throughput")) {
        const std::string setting = setting_of(*bench);
        std::set<std::string> cases = cases_of(*bench);
        const auto found = std::ranges::find_if(sweeps, [&](const Sweep& sweep) {
            return !setting.empty() && sweep.setting == setting &&
                   std::ranges::none_of(
                       cases, [&](const std::string& one) { return sweep.cases.contains(one); });
        });
        const auto idx = static_cast<size_t>(found - sweeps.begin());
        sweep_[bench] = idx;
        if (found == sweeps.end()) {
            sweeps.push_back({setting, bench->name, std::move(cases)});
            names_.push_back(bench->name);
        } else {
            found->cases.merge(cases);
            names_[idx] = common_name(names_[idx], bench->name);
        }
    }
    const std::vector<std::string> common = names_;
    for (size_t i = 0; i < names_.size(); ++i)
        if (std::ranges::count(common, common[i]) > 1) names_[i] = sweeps[i].first_name;
}

std::string Sweeps::prefix(const BenchResult& bench) const {
    return names_.size() > 1 ? names_[of(bench)] + ": " : "";
}

}  // namespace ferry::report
