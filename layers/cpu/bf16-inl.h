// Rows of bf16 to f32 and back, bit for bit as base/dtype.h, and sums of products of pairs of bf16:
// by vdpbf16ps, or by two FMAs of pairs of f32 that lie swapped, which has the same bits: the
// instruction adds the second product of a pair first. Compiled once per instruction set.
#include <bit>

#include "base/dtype.h"
#include "layers/cpu/vector-inl.h"

#if defined(FERRY_LAYERS_CPU_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_BF16_INL_H_
#undef FERRY_LAYERS_CPU_BF16_INL_H_
#else
#define FERRY_LAYERS_CPU_BF16_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

#undef FERRY_BF16_DOTS
#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
#define FERRY_BF16_DOTS 1
// sum += a * b, pairs of bf16 in each lane. Highway has no target with this instruction yet; only
// where uses_bf16_dots() (kernels.h).
HWY_INLINE void add_dots(__m512i a, __m512i b, FloatVector& sum) {
    __m512 in_place = sum.raw;  // of its own, or arrays of sums stay in memory
    asm("vdpbf16ps %2, %1, %0" : "+v"(in_place) : "v"(a), "v"(b));
    sum = FloatVector{in_place};
}
#else
#define FERRY_BF16_DOTS 0
#endif

// The upper halves of f32 as vdpbf16ps takes them: zero if not normal.
HWY_INLINE FloatVector dots_values(hn::Vec<hn::RebindToUnsigned<Floats>> upper) {
    const hn::RebindToUnsigned<Floats> d;
    const auto exponent = hn::And(upper, hn::Set(d, 0x7f800000u));
    return hn::BitCast(Floats(), hn::IfThenZeroElse(hn::Eq(exponent, hn::Zero(d)), upper));
}

// bf16 values as f32 with each pair swapped. An even number.
HWY_INLINE void swap_pairs(const uint16_t* HWY_RESTRICT rounded, int64_t num,
                           float* HWY_RESTRICT to) {
    int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::RebindToUnsigned<Floats> d;
    const hn::Repartition<uint16_t, Floats> d16;
    for (; i + 2 * kLanes <= num; i += 2 * kLanes) {
        const auto pairs = hn::BitCast(d, hn::LoadU(d16, rounded + i));
        const auto second = hn::And(pairs, hn::Set(d, 0xffff0000u));
        hn::StoreInterleaved2(dots_values(second), dots_values(hn::ShiftLeft<16>(pairs)), Floats(),
                              to + i);
    }
#endif
    for (; i < num; ++i) {
        const uint32_t bits = rounded[i ^ 1];
        to[i] = std::bit_cast<float>((bits & 0x7f80u) != 0 ? bits << 16 : 0u);
    }
}

HWY_INLINE void widen_bf16(const uint16_t* HWY_RESTRICT from, int64_t count,
                           float* HWY_RESTRICT to) {
    const Floats d;
    const hn::Rebind<uint16_t, Floats> d16;
    const hn::RebindToUnsigned<Floats> d32;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, from + i));
        hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, to + i);
    }
    for (; i < count; ++i) to[i] = bf16_to_f32(from[i]);
}

// To nearest, ties to even; NaN stays NaN.
HWY_INLINE void narrow_bf16(const float* HWY_RESTRICT from, int64_t count,
                            uint16_t* HWY_RESTRICT to) {
    const Floats d;
    const hn::Rebind<uint16_t, Floats> d16;
    const hn::RebindToUnsigned<Floats> d32;
    const hn::RebindToSigned<Floats> di;
    const auto last_kept = hn::Set(d32, 1u), half_less = hn::Set(d32, 0x7fffu);
    const auto quiet = hn::Set(d32, 0x400000u);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const FloatVector x = hn::LoadU(d, from + i);
        const auto bits = hn::BitCast(d32, x);
        const auto odd = hn::And(hn::ShiftRight<16>(bits), last_kept);
        const auto rounded = hn::Add(bits, hn::Add(half_less, odd));
        const auto nan = hn::RebindMask(d32, hn::IsNaN(x));
        const auto upper = hn::ShiftRight<16>(hn::IfThenElse(nan, hn::Or(bits, quiet), rounded));
        hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, upper)), d16, to + i);
    }
    for (; i < count; ++i) to[i] = f32_to_bf16(from[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
