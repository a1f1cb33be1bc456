#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/row_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/logits.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

constexpr int kSums = 16, kSumVectors = kSums / kLanes;

// body(16 values) from start to end; the last are filled up with `padding`.
template <typename Body>
HWY_INLINE void for_16(const float* x, int64_t count, float padding, const Body& body) {
    int64_t i = 0;
    for (; i + kSums <= count; i += kSums) body(x + i);
    if (i == count) return;
    float last[kSums];
    std::fill(std::copy(x + i, x + count, last), last + kSums, padding);
    body(last);
}

float largest(const float* x, int64_t count) {
    const Floats d;
    const float lowest = -std::numeric_limits<float>::infinity();
    FloatVector maxima[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) maxima[v] = hn::Set(d, lowest);
    for_16(x, count, lowest, [&](const float* values) HWY_ATTR {
        for (int v = 0; v < kSumVectors; ++v)
            maxima[v] = hn::Max(hn::LoadU(d, values + v * kLanes), maxima[v]);
    });
    float lanes[kSums];
    for (int v = 0; v < kSumVectors; ++v) hn::StoreU(maxima[v], d, lanes + v * kLanes);
    return *std::max_element(lanes, lanes + kSums);
}

// Sum of exp(x - maximum): 16 interleaved partial sums, then by halves.
float sum_exp(const float* x, int64_t count, float maximum) {
    const Floats d;
    const FloatVector shift = hn::Set(d, maximum);
    FloatVector sums[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) sums[v] = hn::Zero(d);
    for_16(x, count, -std::numeric_limits<float>::infinity(), [&](const float* values) HWY_ATTR {
        for (int v = 0; v < kSumVectors; ++v)
            sums[v] = hn::Add(sums[v], fast_exp(hn::Sub(hn::LoadU(d, values + v * kLanes), shift)));
    });
    float total[kSums];
    for (int v = 0; v < kSumVectors; ++v) hn::StoreU(sums[v], d, total + v * kLanes);
    for (int width = kSums / 2; width >= 1; width /= 2)
        for (int s = 0; s < width; ++s) total[s] += total[s + width];
    return total[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(largest);
HWY_EXPORT(sum_exp);

void CpuKernels::log_sum_exp(const Tensor& logits, const Tensor& lse, std::span<int32_t> argmax) {
    const int64_t vocab = logits.dim(1);
    check_shape(logits, "logits", DType::f32, {logits.rows(), vocab});
    check_shape(lse, "lse", DType::f32, {logits.rows()});
    FERRY_CHECK(vocab > 0 && static_cast<int64_t>(argmax.size()) == logits.rows(),
                "{} arg-maxes of logits {}", argmax.size(), logits.describe());
    for_row_ranges(threads_, logits.rows(), 4 * vocab, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row) {
            const float* x = logits.row<float>(row);
            const float best = HWY_DYNAMIC_DISPATCH(largest)(x, vocab);
            const float* place = std::find(x, x + vocab, best);
            argmax[static_cast<size_t>(row)] =
                place == x + vocab ? 0 : static_cast<int32_t>(place - x);  // all NaN: 0
            // The logarithm in f64: its f32 rounding does not depend on the C library's variant.
            const double sum = HWY_DYNAMIC_DISPATCH(sum_exp)(x, vocab, best);
            lse.as<float>()[row] = best + static_cast<float>(std::log(sum));
        }
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
