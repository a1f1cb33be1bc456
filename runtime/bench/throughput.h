// Runs a workload through a loaded engine, several times, and gathers what every rank saw. The loop
// is that of `ferry generate`; only requests and sink differ.
#pragma once
#include <array>
#include <functional>
#include <vector>

#include "base/trace.h"
#include "runtime/bench/latency.h"
#include "runtime/bench/machine.h"
#include "runtime/bench/workload.h"
#include "runtime/loaded_engine.h"

namespace ferry {

// One rank's part of one repetition. Plain bytes: ranks send it to rank 0.
struct RankReport {
    int rank = 0;
    int node = 0;
    bool attention = false, expert = false;
    int64_t wall_ns = 0;  // from the common start to this rank's last step
    std::array<ZoneTotals, kNumZones> zones{};
    int64_t in_flight_ns = 0;  // of exchanges (ExchangeTimes)
    int64_t num_steps = 0;
    int64_t prompt_rows = 0, generated_rows = 0, wanted_rows = 0;
    // Steps with prompt rows only, and of those with generated rows only what came of them; the
    // rest is mixed or empty.
    int64_t prefill_ns = 0, prefill_rows = 0;
    int64_t decode_ns = 0, decode_tokens = 0;
    int64_t num_finished = 0, num_failed = 0, num_wrong_length = 0;
    int64_t num_output_tokens = 0, num_prefix_hits = 0, num_preemptions = 0;
    int64_t num_drafts = 0, num_accepted_drafts = 0;  // draft tokens computed, and right
    uint64_t outputs = 0;  // sum over requests of a hash of index and tokens
    int64_t weight_bytes = 0, cache_bytes = 0, peak_bytes = 0, resident_bytes = 0;
    MachineSpan machine{};

    // Time in zones; of the wall time.
    double covered() const;
};

struct Repetition {
    double wall_s = 0;  // of the slowest rank
    std::vector<RankReport> ranks;
    std::vector<RequestLatency> requests;
    std::vector<double> between_tokens_s;
    std::vector<std::vector<int64_t>> expert_rows;  // by MoE layer, by expert
    // By expert rank, by attention rank: how much later than the first its rows came, on average.
    std::vector<std::vector<double>> wait_us;

    template <typename Member>
    int64_t sum(Member member) const {
        int64_t total = 0;
        for (const RankReport& rank : ranks) total += static_cast<int64_t>(rank.*member);
        return total;
    }
    // Rows that experts got are those that tokens and layers imply, and all requests have finished
    // with as many tokens as asked for.
    bool all_finished(int64_t num_requests) const;
    bool expert_rows_match(const ModelConfig& model) const;
};

struct ThroughputOptions {
    int num_repetitions = 3;
    int64_t num_warmup_requests = 0;  // run before, all at once
    uint64_t seed = 1;
    std::function<bool()> stop_requested = [] { return false; };
    std::function<void(Engine& engine, int64_t num_finished)> after_step = [](Engine&, int64_t) {};
    std::function<void(bool last)> before_repetition = [](bool) {};  // collective
};

// Collective; complete on every rank. Ends early, with fewer repetitions, when stopped.
std::vector<Repetition> measure_throughput(LoadedEngine& loaded, const ModelConfig& model,
                                           World& world,
                                           const std::vector<WorkloadRequest>& workload,
                                           const ThroughputOptions& options);

}  // namespace ferry
