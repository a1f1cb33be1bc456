// Reading packed panels (panel.h): one step of k widened to f32 registers. Compiled once per
// instruction set. Widening is exact; kSteps values of k come with one load.
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

constexpr int kPanelVectors = static_cast<int>(kPanelColumns) / kLanes;

// The 8 words of a panel's step, as many at a time as fill at most one vector.
using Words = hn::CappedTag<uint32_t, 8>;
using WordVector = hn::Vec<Words>;
constexpr int kWordLanes = static_cast<int>(hn::MaxLanes(Words()));
constexpr int kWordVectors = 8 / kWordLanes;

// columns[v]: the panel's columns [v * kLanes, (v + 1) * kLanes); words hold the upper halves of
// columns i (low half of word i) and i + 8 (high half).
HWY_INLINE void widen_pairs(const WordVector (&words)[kWordVectors],
                            FloatVector (&columns)[kPanelVectors]) {
    const Words dw;
    const WordVector mask = hn::Set(dw, 0xffff0000u);
#if HWY_MAX_BYTES == 64
    const Floats d;
    const hn::RebindToUnsigned<Floats> du;
    columns[0] =
        hn::BitCast(d, hn::Combine(du, hn::And(words[0], mask), hn::ShiftLeft<16>(words[0])));
#else
    const hn::RebindToFloat<Words> df;
    for (int i = 0; i < kWordVectors; ++i) {
        columns[i] = hn::BitCast(df, hn::ShiftLeft<16>(words[i]));
        columns[i + kWordVectors] = hn::BitCast(df, hn::And(words[i], mask));
    }
#endif
}

// The 16-bit halves of a word each hold two e4m3 codes, of k (low byte) and k + 1. Makes of each
// the upper half of an f32 that is 2^-120 times its value: exponents are 120 apart.
HWY_INLINE void split_codes(WordVector codes, WordVector& first, WordVector& second) {
    const Words dw;
#if HWY_TARGET == HWY_SCALAR
    const auto masked = [&](WordVector v, uint32_t mask)
                            HWY_ATTR { return hn::And(v, hn::Set(dw, mask)); };
    first = hn::Or(hn::ShiftLeft<8>(masked(codes, 0x00800080u)),
                   hn::ShiftLeft<4>(masked(codes, 0x007f007fu)));
    second = hn::Or(masked(codes, 0x80008000u), hn::ShiftRight<4>(masked(codes, 0x7f007f00u)));
#else
    const hn::Repartition<int16_t, Words> d16;
    const auto pairs = hn::BitCast(d16, codes);
    const WordVector sign_and_digits = hn::Set(dw, 0x87f087f0u);  // without the copies of the sign
    first = hn::And(hn::BitCast(dw, hn::ShiftRight<4>(hn::ShiftLeft<8>(pairs))), sign_and_digits);
    second = hn::And(hn::BitCast(dw, hn::ShiftRight<4>(pairs)), sign_and_digits);
#endif
}

struct F32Panels {
    static constexpr int kSteps = 1;
    static constexpr int64_t kStepBytes = 4 * kPanelColumns;

    static HWY_INLINE void load(const std::byte* step, FloatVector (&w)[1][kPanelVectors]) {
        const Floats d;
        for (int v = 0; v < kPanelVectors; ++v)
            w[0][v] = hn::Load(d, reinterpret_cast<const float*>(step) + v * kLanes);
    }
};

struct Bf16Panels {
    static constexpr int kSteps = 1;
    static constexpr int64_t kStepBytes = 2 * kPanelColumns;

    static HWY_INLINE void load(const std::byte* step, FloatVector (&w)[1][kPanelVectors]) {
        WordVector words[kWordVectors];
        for (int i = 0; i < kWordVectors; ++i)
            words[i] = hn::Load(Words(), reinterpret_cast<const uint32_t*>(step) + i * kWordLanes);
        widen_pairs(words, w[0]);
    }
};

// Exact, subnormals included. The two NaN codes never get here (linear_pack.cpp).
struct Fp8Panels {
    static constexpr int kSteps = 2;
    static constexpr int64_t kStepBytes = 2 * kPanelColumns;

    static HWY_INLINE void load(const std::byte* step, FloatVector (&w)[2][kPanelVectors]) {
        WordVector words[2][kWordVectors];
        for (int i = 0; i < kWordVectors; ++i)
            split_codes(hn::Load(Words(), reinterpret_cast<const uint32_t*>(step) + i * kWordLanes),
                        words[0][i], words[1][i]);
        const FloatVector bias = hn::Set(Floats(), 0x1p120f);
        for (int k = 0; k < 2; ++k) {
            widen_pairs(words[k], w[k]);
            for (int v = 0; v < kPanelVectors; ++v) w[k][v] = hn::Mul(w[k][v], bias);
        }
    }
};

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
