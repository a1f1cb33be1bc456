#include "base/zones_cuda.h"

#if FERRY_HAS_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

#include <array>
#include <cstdio>

namespace ferry {

void GpuZones::begin([[maybe_unused]] Zone zone, [[maybe_unused]] int layer,
                     [[maybe_unused]] int micro_batch) {
#if FERRY_HAS_CUDA
    std::array<char, 64> name{};
    const std::string_view text = to_string(zone);
    if (layer < 0)
        std::snprintf(name.data(), name.size(), "%.*s", static_cast<int>(text.size()), text.data());
    else
        std::snprintf(name.data(), name.size(), "%.*s layer %d micro-batch %d",
                      static_cast<int>(text.size()), text.data(), layer, micro_batch);
    nvtxRangePushA(name.data());
#endif
}

void GpuZones::end() {
    if (wait_for_ != nullptr) wait_for_->synchronize();
#if FERRY_HAS_CUDA
    nvtxRangePop();
#endif
}

GpuTimeline::GpuTimeline(CudaDevice& device, size_t capacity)
    : device_(device), origin_(device, true), capacity_(capacity) {
    entries_.reserve(capacity);
    device.synchronize();
    const int64_t before_ns = trace_now_ns();
    origin_.record(device.stream());
    origin_.synchronize();
    origin_ns_ = (before_ns + trace_now_ns()) / 2;
    trace().set_observer(this);
}

void GpuTimeline::begin(Zone zone, int layer, int micro_batch) {
    const bool left_out = zone == Zone::step || entries_.size() == capacity_;
    open_.push_back(left_out ? kLeftOut : entries_.size());
    if (left_out) return;
    entries_.push_back({zone, layer, micro_batch, Event(device_, true), Event(device_, true)});
    entries_.back().begin.record(device_.stream());
}

void GpuTimeline::end() {
    const size_t idx = open_.back();
    open_.pop_back();
    if (idx != kLeftOut) entries_[idx].end.record(device_.stream());
}

std::vector<TraceEvent> GpuTimeline::events() const {
    constexpr int64_t kNoWorkNs = 1000;  // between two events in a row
    device_.synchronize();
    const auto at_ns = [&](const Event& event) {
        return origin_ns_ + static_cast<int64_t>(event.seconds_since(origin_) * 1e9);
    };
    std::vector<TraceEvent> events;
    for (const Entry& entry : entries_) {
        const TraceEvent event{.zone = entry.zone,
                               .layer = static_cast<int16_t>(entry.layer),
                               .micro_batch = static_cast<int16_t>(entry.micro_batch),
                               .begin_ns = at_ns(entry.begin),
                               .end_ns = at_ns(entry.end),
                               .bytes = 0};
        if (event.end_ns - event.begin_ns > kNoWorkNs) events.push_back(event);
    }
    return events;
}

}  // namespace ferry
