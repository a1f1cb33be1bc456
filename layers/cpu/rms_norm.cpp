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

constexpr int kSums = 16;

// Partial sum s adds up values i = s, s + 16, ... by add(value, sum); `fill` adds nothing.
template <typename Add>
HWY_INLINE float sum_row(const float* x, int64_t dim, float fill, Add&& add) {
    const Floats d;
    constexpr int kVectors = kSums / kLanes;
    FloatVector sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
    const auto add_values = [&](const float* values) HWY_ATTR {
        for (int v = 0; v < kVectors; ++v)
            sums[v] = add(hn::LoadU(d, values + v * kLanes), sums[v]);
    };
    int64_t i = 0;
    for (; i + kSums <= dim; i += kSums) add_values(x + i);
    if (i < dim) {
        float last[kSums];
        std::fill(std::copy(x + i, x + dim, last), last + kSums, fill);
        add_values(last);
    }
    float total[kSums];
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, total + v * kLanes);
    for (int width = kSums / 2; width >= 1; width /= 2)
        for (int s = 0; s < width; ++s) total[s] += total[s + width];
    return total[0];
}

// y may be x.
void rms_norm_row(const float* x, const float* HWY_RESTRICT weight, int64_t dim, float eps,
                  float* y) {
    const Floats d;
    const float squares = sum_row(x, dim, 0, [](FloatVector value, FloatVector sum) HWY_ATTR {
        return fused_multiply_add(value, value, sum);
    });
    const float scale = 1 / std::sqrt(squares / static_cast<float>(dim) + eps);
    const FloatVector scales = hn::Set(d, scale);
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes)
        hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scales), hn::LoadU(d, weight + i)), d,
                   y + i);
    for (; i < dim; ++i) y[i] = x[i] * scale * weight[i];
}

// y may be x.
void layer_norm_row(const float* x, const float* HWY_RESTRICT weight,
                    const float* HWY_RESTRICT bias, int64_t dim, float eps, float* y) {
    const Floats d;
    const float sum = sum_row(x, dim, 0, [](FloatVector value, FloatVector so_far) HWY_ATTR {
        return hn::Add(so_far, value);
    });
    const float mean = sum / static_cast<float>(dim);
    const FloatVector means = hn::Set(d, mean);
    const float squares =
        sum_row(x, dim, mean, [means](FloatVector value, FloatVector so_far) HWY_ATTR {
            const FloatVector difference = hn::Sub(value, means);
            return fused_multiply_add(difference, difference, so_far);
        });
    const FloatVector scales = hn::Set(d, 1 / std::sqrt(squares / static_cast<float>(dim) + eps));
    const auto norm = [&](const float* from, const float* w, const float* b, float* to) HWY_ATTR {
        const FloatVector scaled = hn::Mul(hn::Sub(hn::LoadU(d, from), means), scales);
        hn::StoreU(fused_multiply_add(scaled, hn::LoadU(d, w), hn::LoadU(d, b)), d, to);
    };
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) norm(x + i, weight + i, bias + i, y + i);
    if (i == dim) return;
    float last[3][kLanes] = {};
    std::copy(x + i, x + dim, last[0]);
    std::copy(weight + i, weight + dim, last[1]);
    std::copy(bias + i, bias + dim, last[2]);
    norm(last[0], last[1], last[2], last[0]);
    std::copy(last[0], last[0] + (dim - i), y + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(rms_norm_row);
HWY_EXPORT(layer_norm_row);

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

void CpuKernels::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                            const Tensor& y) {
    const int64_t dim = x.dim(1);
    check_shape(x, "x", DType::f32, {x.rows(), dim});
    check_shape(weight, "weight", DType::f32, {dim});
    check_shape(bias, "bias", DType::f32, {dim});
    check_shape(y, "y", DType::f32, {x.rows(), dim});
    for_row_ranges(threads_, x.rows(), dim, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row) HWY_DYNAMIC_DISPATCH(layer_norm_row)
        (x.row<float>(row), weight.as<float>(), bias.as<float>(), dim, eps, y.row<float>(row));
    });
}

void CpuKernels::add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                              const Tensor& y) {
    add(x, h);
    rms_norm(h, weight, eps, y);
}

}  // namespace ferry
#endif  // HWY_ONCE
