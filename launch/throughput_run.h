// Runs points of a throughput sweep inside one job: for each, an engine is built on as many of the
// job's ranks as its layout needs, measured and taken down again.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "comm/watchdog.h"
#include "launch/throughput_report.h"
#include "runtime/config.h"
#include "runtime/opened_model.h"

namespace ferry {

// "2:2", "2:2:2" (attention : expert ranks : TP size), "colocated", "colocated:4",
// "colocated:4:2". Ranks: 0 for colocated without a number: all of the job.
struct LayoutChoice {
    std::string text{};
    Config::Layout::Mode mode = Config::Layout::Mode::colocated;
    int attention_ranks = 0, expert_ranks = 0, tp_size = 1;

    int num_ranks(int world_size) const {
        if (mode == Config::Layout::Mode::disaggregated) return attention_ranks + expert_ranks;
        return attention_ranks > 0 ? attention_ranks : world_size;
    }
};
// Throws Error(usage) naming `option`.
LayoutChoice parse_layout_choice(const std::string& text, const std::string& option);
// Of a configuration, on so many ranks.
LayoutChoice layout_choice_of(const Config& config, int num_ranks);

// What is swept; an empty list: what the configuration says (of layouts there is one at least).
struct ThroughputSweep {
    std::vector<LayoutChoice> layouts;
    std::vector<int64_t> batches, micro_batches, threads;
    std::vector<std::string> modes, transports;

    // All combinations, layouts slowest; each named by what differs.
    std::vector<ThroughputCase> cases(const Config& config) const;
};

class ThroughputRunner {
  public:
    // `model` is opened already; all must outlive the runner.
    // `status_dir`: where rank 0 keeps a status file (launch/status_file.h); empty: nowhere.
    ThroughputRunner(World& world, Watchdog* watchdog, const Config& config, OpenedModel& model,
                     std::string status_dir = {})
        : world_(world),
          watchdog_(watchdog),
          config_(config),
          model_(model),
          status_dir_(std::move(status_dir)) {}

    // Collective; the outcome is complete on rank 0. `options.num_warmup_requests` below 0: as many
    // as run at once.
    ThroughputOutcome run(ThroughputCase about, const LayoutChoice& layout,
                          const std::vector<WorkloadRequest>& workload, ThroughputOptions options);

  private:
    Config config_of(const ThroughputCase& about, const LayoutChoice& layout) const;
    ThroughputOutcome run_on(World& part, ThroughputCase about, const Config& config,
                             const std::vector<WorkloadRequest>& workload,
                             ThroughputOptions options);

    World& world_;
    Watchdog* watchdog_;
    const Config& config_;
    OpenedModel& model_;
    std::string status_dir_;
};

// {"section.key": "value"} of the whole configuration, and the table of nodes, as JSON. The second
// is collective.
std::string config_json(Config config);
std::string hosts_json(World& world);
std::string versions_json();
// "2026-11-25T19:20:00Z"
std::string time_text();

}  // namespace ferry
