// Reading packed panels (panel.h): one step of k widened to f32 registers. Compiled once per
// instruction set. Widening is exact. kSteps values of k lie together; load<i, v> gives the v-th
// vector of the i-th of them. kRounds: rows are rounded to bf16 too, in pairs of k.
#include "layers/cpu/bf16-inl.h"
#include "layers/cpu/panel.h"
#include "layers/cpu/vector-inl.h"

#if defined(FERRY_LAYERS_CPU_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_PANEL_INL_H_
#undef FERRY_LAYERS_CPU_PANEL_INL_H_
#else
#define FERRY_LAYERS_CPU_PANEL_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Lambdas of inner loops: left to itself the compiler calls some of them.
#undef FERRY_INLINE_BODY
#define FERRY_INLINE_BODY HWY_ATTR __attribute__((always_inline))

constexpr int kPanelVectors = static_cast<int>(kPanelColumns) / kLanes;

// The 8 words of a panel's step, as many at a time as fill at most one vector.
using Words = hn::CappedTag<uint32_t, 8>;
using WordVector = hn::Vec<Words>;
constexpr int kWordLanes = static_cast<int>(hn::MaxLanes(Words()));
constexpr int kWordVectors = 8 / kWordLanes;

// The v-th vector of a panel's columns, of which the words hold the upper halves: of columns i in
// the low half of word i, of columns i + 8 in the high half. `words(i)` gives the i-th vector.
template <int kVector, typename GetWords>
HWY_INLINE FloatVector widen_pairs(const GetWords& words) {
    const Words dw;
    const WordVector mask = hn::Set(dw, 0xffff0000u);
#if HWY_MAX_BYTES == 64
    const hn::RebindToUnsigned<Floats> du;
    return hn::BitCast(Floats(),
                       hn::Combine(du, hn::And(words(0), mask), hn::ShiftLeft<16>(words(0))));
#else
    return hn::BitCast(Floats(), kVector < kWordVectors
                                     ? hn::ShiftLeft<16>(words(kVector % kWordVectors))
                                     : hn::And(words(kVector % kWordVectors), mask));
#endif
}

// The 16-bit halves of a word each hold two e4m3 codes, of k (low byte) and k + 1. Makes of the
// one asked for the upper half of an f32 that is 2^-120 times its value: exponents are 120 apart.
template <int kStep>
HWY_INLINE WordVector split_codes(WordVector codes) {
    const Words dw;
#if HWY_TARGET == HWY_SCALAR
    const auto masked = [&](uint32_t mask) HWY_ATTR { return hn::And(codes, hn::Set(dw, mask)); };
    return kStep == 0 ? hn::Or(hn::ShiftLeft<8>(masked(0x00800080u)),
                               hn::ShiftLeft<4>(masked(0x007f007fu)))
                      : hn::Or(masked(0x80008000u), hn::ShiftRight<4>(masked(0x7f007f00u)));
#else
    const hn::Repartition<int16_t, Words> d16;
    const auto pairs = hn::BitCast(d16, codes);
    const WordVector sign_and_digits = hn::Set(dw, 0x87f087f0u);  // without the copies of the sign
    return hn::And(hn::BitCast(dw, hn::ShiftRight<4>(kStep == 0 ? hn::ShiftLeft<8>(pairs) : pairs)),
                   sign_and_digits);
#endif
}

HWY_INLINE WordVector load_words(const std::byte* steps, int vector) {
    return hn::Load(Words(), reinterpret_cast<const uint32_t*>(steps) + vector * kWordLanes);
}

struct F32Panels {
    static constexpr bool kRounds = false;
    static constexpr int kSteps = 1;
    static constexpr int64_t kStepBytes = 4 * kPanelColumns;

    template <int kStep, int kVector>
    static HWY_INLINE FloatVector load(const std::byte* steps) {
        return hn::Load(Floats(), reinterpret_cast<const float*>(steps) + kVector * kLanes);
    }
};

struct Bf16Panels {
    static constexpr bool kRounds = false;
    static constexpr int kSteps = 2;
    static constexpr int64_t kStepBytes = 4 * kPanelColumns;

    // Of one pair of k: words of (k, k + 1).
    template <int kStep>
    static HWY_INLINE FloatVector widen(hn::Vec<hn::RebindToUnsigned<Floats>> pairs) {
        const hn::RebindToUnsigned<Floats> d;
        return hn::BitCast(Floats(), kStep == 0 ? hn::ShiftLeft<16>(pairs)
                                                : hn::And(pairs, hn::Set(d, 0xffff0000u)));
    }
    template <int kStep, int kVector>
    static HWY_INLINE FloatVector load(const std::byte* steps) {
        // Each step reads the pairs again: to keep them takes registers that AVX2 has not.
        asm("" : "+r"(steps));
        return widen<kStep>(hn::Load(hn::RebindToUnsigned<Floats>(),
                                     reinterpret_cast<const uint32_t*>(steps) + kVector * kLanes));
    }
};

// bf16 by rows in bf16, of each pair of k the second product first: the order in which vdpbf16ps
// adds them, so that its bits are those of two FMAs.
struct Bf16PairPanels {
    static constexpr bool kRounds = true;
    static constexpr int kSteps = 2;
    static constexpr int64_t kStepBytes = Bf16Panels::kStepBytes;

    template <int kStep>
    static HWY_INLINE FloatVector widen(hn::Vec<hn::RebindToUnsigned<Floats>> pairs) {
        return Bf16Panels::widen<1 - kStep>(pairs);
    }
    template <int kStep, int kVector>
    static HWY_INLINE FloatVector load(const std::byte* steps) {
        return Bf16Panels::load<1 - kStep, kVector>(steps);
    }
};

// The same in the order of AMX (amx.h): rows and panels as for Bf16PairPanels, other sums.
struct Bf16AmxPanels : Bf16PairPanels {};

#if FERRY_BF16_DOTS
// The same as Bf16PairPanels by that instruction: a row's pair goes to all lanes.
struct Bf16DotPanels {
    static constexpr bool kRounds = true;
    static constexpr int kSteps = 2;
    static constexpr int64_t kStepBytes = Bf16Panels::kStepBytes;
};
#endif

// Exact, subnormals included. The two NaN codes never get here (linear_pack.cpp).
struct Fp8Panels {
    static constexpr bool kRounds = false;
    static constexpr int kSteps = 2;
    static constexpr int64_t kStepBytes = 2 * kPanelColumns;

    template <int kStep, int kVector>
    static HWY_INLINE FloatVector load(const std::byte* steps) {
        const FloatVector scaled = widen_pairs<kVector>(
            [&](int i) FERRY_INLINE_BODY { return split_codes<kStep>(load_words(steps, i)); });
        return hn::Mul(scaled, hn::Set(Floats(), 0x1p120f));
    }
};

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
