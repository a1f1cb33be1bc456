#include "launch/throughput_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/median.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLeastCovered = 0.97, kMostCovered = 1.03;

const std::vector<BenchColumn> kColumns{
    {.key = "layout", .heading = "layout"},
    {.key = "settings", .heading = "settings"},
    {.key = "case", .heading = ""},
    {.key = "ranks", .heading = ""},
    {.key = "nodes", .heading = ""},
    {.key = "gpus", .heading = ""},
    {.key = "attention_ranks", .heading = ""},
    {.key = "expert_ranks", .heading = ""},
    {.key = "tp_size", .heading = ""},
    {.key = "max_batch", .heading = ""},
    {.key = "micro_batches", .heading = ""},
    {.key = "mode", .heading = ""},
    {.key = "transport", .heading = ""},
    {.key = "threads", .heading = ""},
    {.key = "rate", .heading = ""},
    {.key = "skipped", .heading = ""},
    {.key = "wall_s", .heading = "s", .num_digits = 2},
    {.key = "spread", .heading = "spread %", .num_digits = 1, .scale = 100},
    {.key = "requests_per_s", .heading = "req/s", .num_digits = 2},
    {.key = "prefill_tokens_per_s", .heading = "in tok/s", .num_digits = 0},
    {.key = "output_tokens_per_s", .heading = "out tok/s", .num_digits = 1},
    {.key = "total_tokens_per_s", .heading = ""},
    {.key = "output_tokens_per_s_per_rank", .heading = "/rank", .num_digits = 1},
    {.key = "output_tokens_per_s_per_node", .heading = ""},
    {.key = "output_tokens_per_s_per_gpu", .heading = ""},
    {.key = "prefill_tokens_per_s_per_rank", .heading = ""},
    {.key = "prefill_tokens_per_s_per_node", .heading = ""},
    {.key = "prefill_tokens_per_s_per_gpu", .heading = ""},
    {.key = "prefill_phase_tokens_per_s", .heading = ""},
    {.key = "decode_phase_tokens_per_s", .heading = ""},
    {.key = "ttft_p50_ms", .heading = "TTFT ms p50"},
    {.key = "ttft_p99_ms", .heading = "p99"},
    {.key = "tpot_p50_ms", .heading = "TPOT ms p50", .num_digits = 2},
    {.key = "tpot_p99_ms", .heading = "p99", .num_digits = 2},
    {.key = "itl_p50_ms", .heading = ""},
    {.key = "itl_p99_ms", .heading = "ITL p99", .num_digits = 2},
    {.key = "goodput_requests_per_s", .heading = "good req/s", .num_digits = 2},
    {.key = "goodput_share", .heading = ""},
    {.key = "hidden_share", .heading = "hidden <= %", .num_digits = 0, .scale = 100},
    {.key = "imbalance", .heading = "max/mean", .num_digits = 2},
    {.key = "peak_rss_bytes", .heading = "MB/rank", .num_digits = 0, .scale = 1e-6},
    {.key = "valid", .heading = "valid"}};

// Where no GPU computes there is no rate of one.
std::vector<BenchColumn> columns_for(bool with_gpus) {
    std::vector<BenchColumn> columns = kColumns;
    if (!with_gpus)
        std::erase_if(columns, [](const auto& column) { return column.key.ends_with("_per_gpu"); });
    return columns;
}

double per_s(int64_t count, int64_t ns) {
    return ns > 0 ? static_cast<double>(count) * 1e9 / static_cast<double>(ns) : 0;
}

struct Rates {
    double wall_s = 0, requests = 0, prefill = 0, output = 0, prefill_phase = 0, decode_phase = 0;
};

Rates rates_of(const Repetition& repetition) {
    Rates rates{.wall_s = repetition.wall_s};
    const auto over_wall = [&](int64_t count) {
        return static_cast<double>(count) / repetition.wall_s;
    };
    rates.requests = over_wall(repetition.sum(&RankReport::num_finished));
    rates.prefill = over_wall(repetition.sum(&RankReport::prompt_rows));
    rates.output = over_wall(repetition.sum(&RankReport::num_output_tokens));
    for (const RankReport& rank : repetition.ranks) {
        rates.prefill_phase += per_s(rank.prefill_rows, rank.prefill_ns);
        rates.decode_phase += per_s(rank.decode_tokens, rank.decode_ns);
    }
    return rates;
}

template <typename Member>
double median_of(const std::vector<Rates>& all, Member member) {
    std::vector<double> values;
    for (const Rates& rates : all) values.push_back(rates.*member);
    return median(values);
}

// Of output tokens per second: between the best and the worst repetition, of the median.
double spread_of(const std::vector<Rates>& all) {
    const auto [least, most] = std::minmax_element(
        all.begin(), all.end(), [](const Rates& a, const Rates& b) { return a.output < b.output; });
    const double middle = median_of(all, &Rates::output);
    return middle > 0 ? (most->output - least->output) / middle : 0;
}

// The repetition whose length is the (lower) median.
const Repetition& typical(const std::vector<Repetition>& repetitions) {
    std::vector<const Repetition*> order;
    for (const Repetition& each : repetitions) order.push_back(&each);
    std::sort(order.begin(), order.end(),
              [](const auto* a, const auto* b) { return a->wall_s < b->wall_s; });
    return *order[(order.size() - 1) / 2];
}

struct Latencies {
    Distribution ttft, tpot, itl, total;
    double good_share = 0, good_per_s = 0;
};

Latencies latencies_of(const std::vector<Repetition>& repetitions, const ServiceTargets& targets) {
    std::vector<double> ttft, tpot, itl, total;
    int64_t num_good = 0;
    double wall_s = 0;
    for (const Repetition& repetition : repetitions) {
        wall_s += repetition.wall_s;
        for (const RequestLatency& request : repetition.requests) {
            ttft.push_back(request.ttft_s * 1e3);
            if (request.num_tokens > 1) tpot.push_back(request.tpot_s * 1e3);
            total.push_back(request.total_s * 1e3);
            num_good += targets.met_by(request) ? 1 : 0;
        }
        for (const double s : repetition.between_tokens_s) itl.push_back(s * 1e3);
    }
    const double num = static_cast<double>(ttft.size());
    Latencies result{.ttft = distribution_of(ttft),
                     .tpot = distribution_of(tpot),
                     .itl = distribution_of(itl),
                     .total = distribution_of(total)};
    if (targets.any() && num > 0) {
        result.good_share = static_cast<double>(num_good) / num;
        result.good_per_s = static_cast<double>(num_good) / wall_s;
    }
    return result;
}

Json json_of(const Distribution& d) {
    return {{"count", d.count}, {"mean", d.mean}, {"min", d.min}, {"p50", d.p50},
            {"p90", d.p90},     {"p99", d.p99},   {"max", d.max}};
}

double seconds(int64_t ns) {
    return static_cast<double>(ns) * 1e-9;
}

const ZoneTotals& zone_of(const RankReport& rank, Zone zone) {
    return rank.zones[static_cast<size_t>(zone)];
}

std::string role_of(const RankReport& rank) {
    return rank.attention && rank.expert ? "colocated" : rank.attention ? "attention" : "expert";
}

Json json_of(const RankReport& rank, const std::vector<std::string>& hosts) {
    Json phases = Json::object();
    for (int z = 0; z < kNumZones; ++z) {
        const ZoneTotals& totals = rank.zones[static_cast<size_t>(z)];
        if (totals.count == 0) continue;
        phases[std::string(to_string(static_cast<Zone>(z)))] = {
            {"time_s", seconds(totals.self_ns)}, {"count", totals.count}, {"bytes", totals.bytes}};
    }
    return {{"rank", rank.rank},
            {"node", rank.node},
            {"host", hosts[static_cast<size_t>(rank.node)]},
            {"role", role_of(rank)},
            {"wall_s", seconds(rank.wall_ns)},
            {"phases", std::move(phases)},
            {"covered", rank.covered()},
            {"resident_bytes", rank.resident_bytes},
            {"peak_rss_bytes", rank.peak_bytes},
            {"weight_bytes", rank.weight_bytes},
            {"cache_bytes", rank.cache_bytes},
            {"steps", rank.num_steps},
            {"prompt_rows", rank.prompt_rows},
            {"generated_rows", rank.generated_rows},
            {"wanted_rows", rank.wanted_rows},
            {"prefix_hits", rank.num_prefix_hits},
            {"preemptions", rank.num_preemptions},
            {"drafts", rank.num_drafts},
            {"accepted_drafts", rank.num_accepted_drafts}};
}

struct ExchangeFigures {
    double in_flight_s = 0, exposed_s = 0, hidden_share = 0;
    int64_t dispatch_bytes = 0, combine_bytes = 0;
};

ExchangeFigures exchange_of(const Repetition& repetition) {
    ExchangeFigures figures;
    for (const RankReport& rank : repetition.ranks) {
        figures.dispatch_bytes += zone_of(rank, Zone::pack).bytes;
        figures.combine_bytes += zone_of(rank, Zone::reply).bytes;
        if (!rank.attention) continue;
        figures.in_flight_s += seconds(rank.in_flight_ns);
        figures.exposed_s += seconds(zone_of(rank, Zone::combine_wait).self_ns);
    }
    if (figures.in_flight_s > 0)
        figures.hidden_share = std::max(0.0, 1 - figures.exposed_s / figures.in_flight_s);
    return figures;
}

double max_over_mean(const std::vector<int64_t>& rows) {
    const auto total = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
    if (rows.empty() || total == 0) return 0;
    return static_cast<double>(*std::max_element(rows.begin(), rows.end())) *
           static_cast<double>(rows.size()) / total;
}

Json expert_load_of(const Repetition& repetition, const std::vector<int>& rank_of_expert,
                    int num_ranks, int64_t first_layer, double& imbalance) {
    Json layers = Json::array();
    imbalance = 0;
    for (size_t layer = 0; layer < repetition.expert_rows.size(); ++layer) {
        const std::vector<int64_t>& rows = repetition.expert_rows[layer];
        Json json{{"layer", first_layer + static_cast<int64_t>(layer)},
                  {"max_over_mean", max_over_mean(rows)}};
        if (rank_of_expert.size() == rows.size()) {
            std::vector<int64_t> by_rank(static_cast<size_t>(num_ranks), 0);
            for (size_t e = 0; e < rows.size(); ++e)
                by_rank[static_cast<size_t>(rank_of_expert[e])] += rows[e];
            json["rank_max_over_mean"] = max_over_mean(by_rank);
        }
        json["rows"] = rows;
        imbalance = std::max(imbalance, max_over_mean(rows));
        layers.push_back(std::move(json));
    }
    return layers;
}

struct Validity {
    bool all_finished = true, token_counts = true, same_outputs = true, expert_rows = true,
         phases_covered = true;
    std::string outputs;
    std::vector<std::string> doubts;

    bool results_hold() const {
        return all_finished && token_counts && same_outputs && expert_rows;
    }
    bool valid() const { return results_hold() && phases_covered; }
    std::string word() const { return !valid() ? "NO" : doubts.empty() ? "yes" : "doubt"; }
};

Validity check(const ThroughputOutcome& outcome, const ModelConfig& model) {
    Validity validity;
    std::set<std::string> seen;  // one doubt of each kind, whatever its number
    const auto outputs = [](const Repetition& repetition) {
        uint64_t sum = 0;
        for (const RankReport& rank : repetition.ranks) sum += rank.outputs;
        return sum;
    };
    const uint64_t first = outputs(outcome.repetitions[0]);
    validity.outputs = fmt::format("{:016x}", first);
    for (const Repetition& repetition : outcome.repetitions) {
        validity.all_finished &= repetition.all_finished(outcome.num_requests);
        validity.token_counts &= repetition.sum(&RankReport::num_wrong_length) == 0;
        validity.same_outputs &= outputs(repetition) == first;
        validity.expert_rows &= repetition.expert_rows_match(model);
        std::vector<MachineSpan> machine;
        for (const RankReport& rank : repetition.ranks) {
            validity.phases_covered &=
                rank.covered() >= kLeastCovered && rank.covered() <= kMostCovered;
            machine.push_back(rank.machine);
        }
        for (std::string& doubt : clock_doubts(machine, outcome.cores))
            if (seen.insert(doubt.substr(0, doubt.find_first_of("0123456789", doubt.find(':'))))
                    .second)
                validity.doubts.push_back(std::move(doubt));
    }
    return validity;
}

Json json_of(const Validity& v) {
    return {{"valid", v.valid()},
            {"all_finished", v.all_finished},
            {"token_counts", v.token_counts},
            {"same_outputs", v.same_outputs},
            {"expert_rows", v.expert_rows},
            {"phases_covered", v.phases_covered},
            {"outputs", v.outputs},
            {"doubts", v.doubts}};
}

std::string line_of(const Validity& v) {
    const auto word = [](bool fine) { return fine ? "yes" : "NO"; };
    std::string text = fmt::format(
        "validity: {}; all requests finished: {}, token counts: {}, same outputs in every "
        "repetition: {} ({}), expert rows add up: {}, phases add up to the wall time: {}\n",
        v.word(), word(v.all_finished), word(v.token_counts), word(v.same_outputs), v.outputs,
        word(v.expert_rows), word(v.phases_covered));
    for (const std::string& doubt : v.doubts) text += "  doubt: " + doubt + "\n";
    return text;
}

std::vector<BenchValue> settings_of(const ThroughputCase& about) {
    const auto whole = [](auto value) { return static_cast<int64_t>(value); };
    return {about.layout,
            about.settings,
            about.name(),
            whole(about.num_ranks),
            whole(about.num_nodes),
            whole(about.num_gpus),
            whole(about.attention_ranks),
            whole(about.expert_ranks),
            whole(about.tp_size),
            about.max_batch,
            about.micro_batches,
            about.mode,
            about.transport,
            whole(about.threads),
            about.rate,
            about.skipped};
}

struct Column {
    double mean_ms = 0, max_ms = 0;
    int64_t bytes = 0, num = 0;
    void add(const ZoneTotals& totals) {
        mean_ms += static_cast<double>(totals.self_ns) * 1e-6;
        max_ms = std::max(max_ms, static_cast<double>(totals.self_ns) * 1e-6);
        bytes += totals.bytes;
        ++num;
    }
    std::string text() const {
        return num == 0
                   ? fmt::format("{:>21}", "")
                   : fmt::format("{:>10.1f} {:>10.1f}", mean_ms / static_cast<double>(num), max_ms);
    }
};

}  // namespace

std::string phase_table(const Repetition& repetition) {
    const bool apart = std::any_of(repetition.ranks.begin(), repetition.ranks.end(),
                                   [](const RankReport& rank) { return !rank.attention; });
    std::string text =
        fmt::format("{:<16} {:>21} {:>21} {:>10}\n", "ms: mean, most",
                    apart ? "attention ranks" : "ranks", apart ? "expert ranks" : "", "MB");
    for (int z = 0; z < kNumZones; ++z) {
        Column left, right;
        for (const RankReport& rank : repetition.ranks)
            (rank.attention ? left : right).add(rank.zones[static_cast<size_t>(z)]);
        if (left.max_ms == 0 && right.max_ms == 0) continue;
        text +=
            fmt::format("{:<16} {} {} {:>10.1f}\n", to_string(static_cast<Zone>(z)), left.text(),
                        right.text(), static_cast<double>(left.bytes + right.bytes) * 1e-6);
    }
    return text;
}

ThroughputReport::ThroughputReport(ServiceTargets targets, const ModelConfig& model, bool with_gpus)
    : targets_(targets),
      model_(model),
      with_gpus_(with_gpus),
      num_columns_(columns_for(with_gpus).size()),
      report_("throughput", columns_for(with_gpus)) {}

// Of each rate: per rank, per node and, with GPUs, per GPU.
std::vector<double> ThroughputReport::shares_of(const ThroughputCase& about,
                                                const std::vector<double>& rates) const {
    std::vector<double> shares;
    for (const double rate : rates) {
        shares.push_back(rate / about.num_ranks);
        shares.push_back(rate / about.num_nodes);
        if (with_gpus_) shares.push_back(rate / std::max(1, about.num_gpus));
    }
    return shares;
}

void ThroughputReport::add(const ThroughputOutcome& outcome) {
    std::vector<BenchValue> row = settings_of(outcome.about);
    if (outcome.repetitions.empty()) {
        while (row.size() + 1 < num_columns_) row.emplace_back(0.0);
        row.emplace_back("skipped");
        report_.add_row(std::move(row));
        notes_ += fmt::format("\n{}: skipped: {}\n", outcome.about.name(), outcome.about.skipped);
        return;
    }
    std::vector<Rates> all;
    for (const Repetition& repetition : outcome.repetitions) all.push_back(rates_of(repetition));
    const Repetition& middle = typical(outcome.repetitions);
    const Latencies latency = latencies_of(outcome.repetitions, targets_);
    const ExchangeFigures exchange = exchange_of(middle);
    const Validity validity = check(outcome, model_);
    double imbalance = 0;
    const Json load = expert_load_of(middle, outcome.experts_of_rank, outcome.about.expert_ranks,
                                     model_.n_dense_layers, imbalance);
    const double output = median_of(all, &Rates::output), prefill = median_of(all, &Rates::prefill);
    int64_t peak_bytes = 0;
    for (const RankReport& rank : middle.ranks) peak_bytes = std::max(peak_bytes, rank.peak_bytes);
    const std::vector<double> shares = shares_of(outcome.about, {output, prefill});
    for (const double figure :
         {median_of(all, &Rates::wall_s), spread_of(all), median_of(all, &Rates::requests), prefill,
          output, prefill + output})
        row.emplace_back(figure);
    row.insert(row.end(), shares.begin(), shares.end());
    for (const double figure :
         {median_of(all, &Rates::prefill_phase), median_of(all, &Rates::decode_phase),
          latency.ttft.p50, latency.ttft.p99, latency.tpot.p50, latency.tpot.p99, latency.itl.p50,
          latency.itl.p99, latency.good_per_s, latency.good_share, exchange.hidden_share, imbalance,
          static_cast<double>(peak_bytes)})
        row.emplace_back(figure);
    row.emplace_back(validity.word());
    report_.add_row(std::move(row));
    all_valid_ &= validity.results_hold();

    report_.add_detail("latency", Json{{"ttft_ms", json_of(latency.ttft)},
                                       {"tpot_ms", json_of(latency.tpot)},
                                       {"itl_ms", json_of(latency.itl)},
                                       {"e2e_ms", json_of(latency.total)}}
                                      .dump());
    report_.add_detail("goodput", targets_.any() ? Json{{"slo_ttft_ms", targets_.ttft_ms},
                                                        {"slo_tpot_ms", targets_.tpot_ms},
                                                        {"requests_per_s", latency.good_per_s},
                                                        {"share", latency.good_share}}
                                                       .dump()
                                                 : "null");
    Json repetitions = Json::array(), ranks = Json::array();
    for (size_t i = 0; i < all.size(); ++i) {
        const Latencies own = latencies_of({outcome.repetitions[i]}, targets_);
        repetitions.push_back({{"wall_s", all[i].wall_s},
                               {"requests_per_s", all[i].requests},
                               {"prefill_tokens_per_s", all[i].prefill},
                               {"output_tokens_per_s", all[i].output},
                               {"ttft_p50_ms", own.ttft.p50},
                               {"tpot_p50_ms", own.tpot.p50}});
    }
    for (const RankReport& rank : middle.ranks) ranks.push_back(json_of(rank, outcome.hosts));
    report_.add_detail("repetitions", repetitions.dump());
    report_.add_detail("ranks_detail", ranks.dump());
    report_.add_detail("exchange", Json{{"in_flight_s", exchange.in_flight_s},
                                        {"exposed_s", exchange.exposed_s},
                                        {"hidden_share", exchange.hidden_share},
                                        {"dispatch_bytes", exchange.dispatch_bytes},
                                        {"combine_bytes", exchange.combine_bytes}}
                                       .dump());
    report_.add_detail("expert_load", load.dump());
    report_.add_detail("wait_us", Json(middle.wait_us).dump());
    if (!outcome.about.trace.empty())
        report_.add_detail(
            "trace",
            Json(outcome.about.trace).dump(-1, ' ', false, Json::error_handler_t::replace));
    report_.add_detail("validity", json_of(validity).dump());
    notes_ +=
        fmt::format("\n{}\n{}{}", outcome.about.name(), phase_table(middle), line_of(validity));
}

ThroughputFigures figures_of(const ThroughputOutcome& outcome, const ModelConfig& model) {
    if (outcome.repetitions.empty()) return {};
    std::vector<Rates> all;
    for (const Repetition& repetition : outcome.repetitions) all.push_back(rates_of(repetition));
    const Validity validity = check(outcome, model);
    return {.wall_s = median_of(all, &Rates::wall_s),
            .output_tokens_per_s = median_of(all, &Rates::output),
            .spread = spread_of(all),
            .word = validity.word(),
            .results_hold = validity.results_hold()};
}

}  // namespace ferry
