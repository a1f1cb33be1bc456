// Vector pieces that several kernels share, compiled once per instruction set (Highway's -inl
// convention).
//
// fused_multiply_add: rounds once on every target, so that bits do not depend on the vector width.
//
// fast_exp(x), the exponential of every CPU kernel, per lane, in this order (f32, fma = fused):
//   t = fma(x, 1/ln 2, 1.5 * 2^23); n = t - 1.5 * 2^23          (x / ln 2, to the nearest integer)
//   r = fma(n, -ln2_high, x); r = fma(n, -ln2_low, r)
//   p = c0; p = fma(p, r, c1) ... fma(p, r, c5)                 (Cephes' expf polynomial)
//   y = fma(p, r * r, r) + 1, its exponent raised by n
// 0 for x < -87.33 (results below the normal numbers), infinity for x > 88.72283; fast_exp(0) = 1.
// The error stays below 1 unit in the last place (every 499th float of that range is compared with
// the exact result in tests/layers/cpu/exp_test.cpp).
#include <cmath>
#include <limits>

#include "layers/cpu/vector_targets.h"
//
#include <hwy/highway.h>

#if defined(FERRY_LAYERS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_VECTOR_INL_H_
#undef FERRY_LAYERS_CPU_VECTOR_INL_H_
#else
#define FERRY_LAYERS_CPU_VECTOR_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes of f32: kLanes divides 16 on every target.
using Floats = hn::CappedTag<float, 16>;
using FloatVector = hn::Vec<Floats>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));

HWY_INLINE FloatVector fused_multiply_add(FloatVector a, FloatVector b, FloatVector c) {
#if HWY_TARGET == HWY_SCALAR
    return hn::Set(Floats(), std::fma(hn::GetLane(a), hn::GetLane(b), hn::GetLane(c)));
#else
    return hn::MulAdd(a, b, c);
#endif
}

HWY_INLINE FloatVector fast_exp(FloatVector x) {
    const Floats d;
    const hn::RebindToSigned<Floats> di;
    const auto constant = [d](float value) HWY_ATTR { return hn::Set(d, value); };
    const FloatVector shift = constant(0x1.8p23f);
    const FloatVector t = fused_multiply_add(x, constant(0x1.715476p+0f), shift);
    const FloatVector n = hn::Sub(t, shift);
    FloatVector r = fused_multiply_add(n, constant(-0x1.62e4p-1f), x);
    r = fused_multiply_add(n, constant(-0x1.7f7d1cp-20f), r);
    FloatVector p = constant(1.9875691500e-4f);
    p = fused_multiply_add(p, r, constant(1.3981999507e-3f));
    p = fused_multiply_add(p, r, constant(8.3334519073e-3f));
    p = fused_multiply_add(p, r, constant(4.1665795894e-2f));
    p = fused_multiply_add(p, r, constant(1.6666665459e-1f));
    p = fused_multiply_add(p, r, constant(5.0000001201e-1f));
    const FloatVector y = hn::Add(fused_multiply_add(p, hn::Mul(r, r), r), constant(1.0f));
    // The low bits of t hold n.
    const FloatVector scaled =
        hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, t))));
    const FloatVector bounded = hn::IfThenElse(
        hn::Gt(x, constant(88.72283f)), constant(std::numeric_limits<float>::infinity()), scaled);
    return hn::IfThenZeroElse(hn::Lt(x, constant(-87.33f)), bounded);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
