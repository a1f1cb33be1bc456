#include <algorithm>
#include <cmath>

#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/row_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/rms_norm.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Partial sum s adds up x_i^2 of i = s, s + 16, ...; y may be x.
void rms_norm_row(const float* x, const float* HWY_RESTRICT weight, int64_t dim, float eps,
                  float* y) {
    const Floats d;
    constexpr int kSums = 16, kVectors = kSums / kLanes;
    FloatVector sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
    const auto add_squares = [&](const float* values) HWY_ATTR {
        for (int v = 0; v < kVectors; ++v) {
            const FloatVector value = hn::LoadU(d, values + v * kLanes);
            sums[v] = fused_multiply_add(value, value, sums[v]);
        }
    };
    int64_t i = 0;
    for (; i + kSums <= dim; i += kSums) add_squares(x + i);
    if (i < dim) {
        float last[kSums] = {};  // adding 0 changes no sum
        std::copy(x + i, x + dim, last);
        add_squares(last);
    }
    float total[kSums];
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, total + v * kLanes);
    for (int width = kSums / 2; width >= 1; width /= 2)
        for (int s = 0; s < width; ++s) total[s] += total[s + width];

    const float scale = 1 / std::sqrt(total[0] / static_cast<float>(dim) + eps);
    const FloatVector scales = hn::Set(d, scale);
    for (i = 0; i + kLanes <= dim; i += kLanes)
        hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scales), hn::LoadU(d, weight + i)), d,
                   y + i);
    for (; i < dim; ++i) y[i] = x[i] * scale * weight[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(rms_norm_row);

void CpuKernels::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
    const int64_t dim = x.dim(1);
    check_shape(x, "x", DType::f32, {x.rows(), dim});
    check_shape(weight, "weight", DType::f32, {dim});
    check_shape(y, "y", DType::f32, {x.rows(), dim});
    for_row_ranges(threads_, x.rows(), dim, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row) HWY_DYNAMIC_DISPATCH(rms_norm_row)
        (x.row<float>(row), weight.as<float>(), dim, eps, y.row<float>(row));
    });
}

void CpuKernels::add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                              const Tensor& y) {
    add(x, h);
    rms_norm(h, weight, eps, y);
}

}  // namespace ferry
#endif  // HWY_ONCE
