#include "layers/cpu/fma_peak.h"

#include <ctime>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/fma_peak.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

double burst() {
    constexpr int kChains = 12, kRounds = 20000;  // enough chains to hide the latency
    const Floats d;
    FloatVector sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = hn::Set(d, 1.0f + static_cast<float>(i));
    const FloatVector factor = hn::Set(d, 0.999f), term = hn::Set(d, 0.001f);
    for (int round = 0; round < kRounds; ++round)
        for (int i = 0; i < kChains; ++i) sums[i] = fused_multiply_add(sums[i], factor, term);
    FloatVector total = hn::Zero(d);
    for (int i = 0; i < kChains; ++i) total = hn::Add(total, sums[i]);
    volatile float sink = hn::GetLane(total);
    static_cast<void>(sink);
    return 2.0 * kChains * kRounds * kLanes;
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(burst);

double fma_burst() {
    return HWY_DYNAMIC_DISPATCH(burst)();
}

double thread_cpu_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace ferry
#endif  // HWY_ONCE
