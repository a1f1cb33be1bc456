// Zones of the trace on a GPU: ranges in NVIDIA's profilers (NVTX) and, where wanted, times of the
// work itself.
#pragma once
#include <cstdint>
#include <vector>

#include "base/device.h"
#include "base/device_cuda.h"
#include "base/trace.h"

namespace ferry {

// Every zone is a range of a profiler that watches the process ("gate layer 3"); costs nothing
// measurable when none does. With a device, a zone ends when its work is done: then its time is the
// work's, and nothing overlaps. Null: kernels run on, zones are the host's.
class GpuZones final : public ZoneObserver {
  public:
    explicit GpuZones(Device* wait_for = nullptr) : wait_for_(wait_for) {
        trace().set_observer(this);
    }
    ~GpuZones() override { trace().set_observer(nullptr); }
    GpuZones(const GpuZones&) = delete;
    GpuZones& operator=(const GpuZones&) = delete;

    void begin(Zone zone, int layer, int micro_batch) override;
    void end() override;

  private:
    Device* wait_for_;
};

// When a GPU's stream came to the begin and the end of each zone, whatever the host did meanwhile:
// the GPU's own track of a trace. Two events a zone.
class GpuTimeline final : public ZoneObserver {
  public:
    // Takes room for `capacity` zones; later ones are left out.
    GpuTimeline(CudaDevice& device, size_t capacity);
    ~GpuTimeline() override { trace().set_observer(nullptr); }
    GpuTimeline(const GpuTimeline&) = delete;
    GpuTimeline& operator=(const GpuTimeline&) = delete;

    void begin(Zone zone, int layer, int micro_batch) override;
    void end() override;

    // Zones in which the stream had work, in the order of their begin, on the host's clock
    // (trace_now_ns()). Waits for the stream.
    std::vector<TraceEvent> events() const;

  private:
    struct Entry {
        Zone zone;
        int layer, micro_batch;
        Event begin, end;
    };
    static constexpr size_t kLeftOut = SIZE_MAX;

    CudaDevice& device_;
    Event origin_;
    int64_t origin_ns_ = 0;
    size_t capacity_;
    std::vector<Entry> entries_;
    std::vector<size_t> open_;  // entries of zones that have begun
};

}  // namespace ferry
