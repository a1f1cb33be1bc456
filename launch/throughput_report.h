// What `ferry bench throughput` reports of its measurements, for people and machines.
//
// JSON: {"benchmark": "throughput", "format": 1, "time", "command", "versions": {name: version},
// "hosts": [{node, host, cpu, kernel, cores, memory_bytes, gpus, usable_cores, ranks: []}],
//          cores: of the machine; usable_cores: that its ranks may run on
// "config": {"section.key": value as text}, "workload": {requests, input, output, arrivals, rate,
// prefix_share, seed, warmup_requests, repetitions, slo_ttft_ms, slo_tpot_ms},
// "parameters": {}, "rows": []}. A row is one case:
//   the columns below                settings and medians over repetitions; `skipped`: why not run,
//                                    then all figures are 0 and the nested parts are missing
//   "latency": {ttft_ms, tpot_ms, itl_ms, e2e_ms: {count, mean, min, p50, p90, p99, max}}
//                                    of all repetitions together; percentiles by nearest rank
//   "goodput": {slo_ttft_ms, slo_tpot_ms, requests_per_s, share}    or null without targets
//   "repetitions": [{wall_s, requests_per_s, prefill_tokens_per_s, output_tokens_per_s,
//                    ttft_p50_ms, tpot_p50_ms}]
//                                    prefill: prompt rows that were computed, so without those
//                                    found as prefixes and with those computed again
//   "ranks_detail": [{rank, node, host, role, wall_s, phases: {zone: {time_s, count, bytes}},
//                     covered, resident_bytes, peak_rss_bytes, weight_bytes, cache_bytes, steps}]
//                                    of the repetition of median length; times are without zones
//                                    inside and add up to covered * wall_s
//   "exchange": {in_flight_s, exposed_s, hidden_share, dispatch_bytes, combine_bytes}
//                                    hidden_share is an upper bound: replies count as in flight
//                                    until the rank looks for them, also when they came while it
//                                    computed
//   "expert_load": [{layer, max_over_mean, rank_max_over_mean, rows: [by expert]}]
//   "wait_us": [by expert rank [by attention rank]]
//   "trace": file with the trace of the last repetition; only with log.trace
//   "validity": {valid, all_finished, token_counts, same_outputs, expert_rows, phases_covered,
//                outputs, doubts: []}
#pragma once
#include <string>
#include <vector>

#include "launch/bench_report.h"
#include "runtime/bench/throughput.h"

namespace ferry {

// One point of the sweep.
struct ThroughputCase {
    std::string layout{};  // as the user wrote it
    int num_ranks = 1, num_nodes = 1, num_gpus = 0;
    int attention_ranks = 1, expert_ranks = 1, tp_size = 1;
    int64_t max_batch = 0, micro_batches = 1;
    std::string mode{}, transport{};
    int threads = 1;
    double rate = 0;         // 0: all at once
    std::string settings{};  // what differs between the cases of a layout: "batch 8 sized"
    std::string skipped{};
    std::string trace{};  // file for a trace of the last repetition; empty: none

    std::string name() const { return layout + " " + settings; }
};

struct ServiceTargets {
    double ttft_ms = 0, tpot_ms = 0;  // 0: none
    bool any() const { return ttft_ms > 0 || tpot_ms > 0; }
    bool met_by(const RequestLatency& request) const {
        return (ttft_ms <= 0 || request.ttft_s * 1e3 <= ttft_ms) &&
               (tpot_ms <= 0 || request.tpot_s * 1e3 <= tpot_ms);
    }
};

struct ThroughputOutcome {
    ThroughputCase about{};
    std::vector<Repetition> repetitions{};  // none: skipped
    std::vector<std::string> hosts{};       // by node
    std::vector<int> experts_of_rank{};     // expert rank of each expert, one placement for all
    int64_t num_requests = 0;
    int64_t cores = 1;  // of a node
};

// The figures that other tables need of a measurement; zeros when it was skipped.
struct ThroughputFigures {
    double wall_s = 0, output_tokens_per_s = 0, spread = 0;
    std::string word = "skipped";  // yes, doubt, NO
    bool results_hold = true;
};
ThroughputFigures figures_of(const ThroughputOutcome& outcome, const ModelConfig& model);

class ThroughputReport {
  public:
    // `with_gpus`: ranks compute on GPUs; rates of one GPU are columns too.
    ThroughputReport(ServiceTargets targets, const ModelConfig& model, bool with_gpus = false);

    BenchReport& report() { return report_; }
    void add(const ThroughputOutcome& outcome);
    // After the table: phases and validity of every case.
    const std::string& notes() const { return notes_; }
    // Outputs differed, requests were lost, or expert rows do not add up.
    bool all_valid() const { return all_valid_; }

  private:
    std::vector<double> shares_of(const ThroughputCase& about,
                                  const std::vector<double>& rates) const;

    ServiceTargets targets_;
    ModelConfig model_;
    bool with_gpus_;
    size_t num_columns_;
    BenchReport report_;
    std::string notes_;
    bool all_valid_ = true;
};

// By zone: mean and most over the ranks of a role, in ms, and MB.
std::string phase_table(const Repetition& repetition);

}  // namespace ferry
