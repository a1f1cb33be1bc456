// Zones of the trace on a GPU: ranges in NVIDIA's profilers (NVTX) and, where wanted, times of the
// work itself.
#pragma once
#include "base/device.h"
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

}  // namespace ferry
