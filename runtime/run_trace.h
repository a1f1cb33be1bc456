// [17] Where the time of a run went, on all ranks: a Chrome/Perfetto trace and a table of phases,
// both from the zones of base/trace.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/trace.h"
#include "base/zones_cuda.h"
#include "comm/clock_sync.h"
#include "comm/layout.h"
#include "comm/world.h"

namespace ferry {

class RunTrace {
  public:
    // Collective: from here on every rank keeps its events, and totals begin at zero. `record`:
    // false keeps totals only. Measures how far clocks are apart, and so does write(): between
    // these two, clocks are taken to drift evenly.
    // `device`: a GPU gets a track of its own.
    RunTrace(World& world, bool record, Device* device = nullptr);
    ~RunTrace();  // Events are no longer kept.
    RunTrace(const RunTrace&) = delete;
    RunTrace& operator=(const RunTrace&) = delete;
    // Collective, at the end of what is traced.
    void finish();

    // All ranks' events in one file that chrome://tracing and ui.perfetto.dev open
    // (runtime/trace_json.h): one process per rank, times since the constructor on rank 0's clock.
    // "otherData" tells how well clocks are known. Collective: ranks write one after the other.
    // Throws Error(input).
    void write(World& world, const Layout& layout, const std::string& path) const;
    // Milliseconds in each zone on attention and expert ranks, on average and at most; on rank 0.
    // Collective.
    std::string phase_table(World& world, const Layout& layout) const;

  private:
    bool records_;
    int64_t begin_ns_ = 0;
    int64_t end_ns_ = 0;
    ClockOffset begin_offset_;
    std::unique_ptr<GpuTimeline> gpu_;  // null: computes on no GPU
    std::vector<TraceEvent> gpu_events_;
};

// The file of one of several traces: "trace.json" and "1:1 batch 8" make "trace-1-1-batch-8.json".
std::string trace_path_of(const std::string& path, const std::string& name);

}  // namespace ferry
