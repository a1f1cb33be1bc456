// The one list of zones: every stage of a step reports its time, bytes and floating-point
// operations here. Tables, traces and reports are made from it.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace ferry {

enum class Zone : uint8_t {
    step,  // around all others of one step; its own time is what lies between them
    schedule,
    embed,
    attention,
    gate,
    norm,
    pack,
    dispatch_wait,
    experts,
    reply,
    combine_wait,
    combine,
    shared,
    dense,
    tensor_parallel,
    head,
    sample,
    output,
    graph,  // a step that a GPU repeats as it was recorded: all of its stages
    idle,
    load,
    num_zones
};
constexpr int kNumZones = static_cast<int>(Zone::num_zones);
std::string_view to_string(Zone zone);

struct ZoneTotals {
    int64_t count = 0;
    int64_t time_ns = 0;
    int64_t self_ns = 0;  // without the zones inside: these add up over all zones
    int64_t bytes = 0;
    int64_t flops = 0;
};

struct TraceEvent {
    Zone zone;
    int16_t layer;        // -1: none
    int16_t micro_batch;  // -1: none
    int64_t begin_ns;     // since the process's trace epoch (steady clock)
    int64_t end_ns;
    int64_t bytes;
};

// Told of zones as they begin and end, one inside another: ranges of a profiler, or waiting for a
// GPU, so that a zone's time is that of its work and not of its launches.
class ZoneObserver {
  public:
    virtual ~ZoneObserver() = default;
    virtual void begin(Zone zone, int layer, int micro_batch) = 0;
    virtual void end() = 0;
};

// Totals are always kept (two clock reads per zone); events only after `record_events`. Used by a
// rank's main thread only; worker threads of kernels do not report.
class Trace {
  public:
    // From now on keeps up to `capacity` events (allocated here), none of those before; later ones
    // are counted in `dropped_events`. 0: keeps none.
    void record_events(size_t capacity);
    // `inside_ns`: of it spent in zones that lay inside.
    void add(const TraceEvent& event, int64_t flops, int64_t inside_ns = 0);
    void reset_totals() { totals_ = {}; }
    // Null: nobody. Must outlive its stay here.
    void set_observer(ZoneObserver* observer) { observer_ = observer; }
    ZoneObserver* observer() const { return observer_; }

    const std::array<ZoneTotals, kNumZones>& totals() const { return totals_; }
    const std::vector<TraceEvent>& events() const { return events_; }
    int64_t dropped_events() const { return dropped_events_; }

  private:
    friend class ScopedZone;
    std::array<ZoneTotals, kNumZones> totals_{};
    int64_t inside_ns_ = 0;  // of zones that ended inside the one that is open
    std::vector<TraceEvent> events_;
    size_t capacity_ = 0;
    int64_t dropped_events_ = 0;
    ZoneObserver* observer_ = nullptr;
};

Trace& trace();
int64_t trace_now_ns();

// Times a block: `ScopedZone zone(Zone::gate, layer);` … `zone.bytes += …` when known only inside.
class ScopedZone {
  public:
    explicit ScopedZone(Zone zone, int layer = -1, int micro_batch = -1)
        : zone_(zone),
          layer_(layer),
          micro_batch_(micro_batch),
          inside_before_ns_(std::exchange(trace().inside_ns_, 0)) {
        if (ZoneObserver* observer = trace().observer()) observer->begin(zone, layer, micro_batch);
        begin_ns_ = trace_now_ns();
    }
    ~ScopedZone() {
        if (ZoneObserver* observer = trace().observer()) observer->end();
        const int64_t inside_ns = std::exchange(trace().inside_ns_, inside_before_ns_);
        trace().add({zone_, static_cast<int16_t>(layer_), static_cast<int16_t>(micro_batch_),
                     begin_ns_, trace_now_ns(), bytes},
                    flops, inside_ns);
    }
    ScopedZone(const ScopedZone&) = delete;
    ScopedZone& operator=(const ScopedZone&) = delete;

    int64_t bytes = 0;
    int64_t flops = 0;

  private:
    Zone zone_;
    int layer_;
    int micro_batch_;
    int64_t inside_before_ns_;
    int64_t begin_ns_ = 0;
};

}  // namespace ferry
