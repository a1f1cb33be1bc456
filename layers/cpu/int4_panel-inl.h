// Reading int4 panels (int4_panel.h). Compiled once per instruction set.
#include "layers/cpu/compressed_panel-inl.h"
#include "layers/cpu/int4_panel.h"

#if defined(FERRY_LAYERS_CPU_INT4_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_INT4_PANEL_INL_H_
#undef FERRY_LAYERS_CPU_INT4_PANEL_INL_H_
#else
#define FERRY_LAYERS_CPU_INT4_PANEL_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// The lower and the upper byte of the bf16 that a code stands for.
struct Int4Bytes {
    alignas(16) uint8_t lower[16];
    alignas(16) uint8_t upper[16];
};
inline constexpr Int4Bytes kInt4Bytes = [] {
    Int4Bytes bytes{};
    for (int code = 0; code < 16; ++code) {
        const uint16_t value = f32_to_bf16(static_cast<float>(code - 8));
        bytes.lower[code] = static_cast<uint8_t>(value);
        bytes.upper[code] = static_cast<uint8_t>(value >> 8);
    }
    return bytes;
}();

#if HWY_TARGET == HWY_SCALAR

inline void widen_int4(const std::byte* units, int64_t num_k, uint16_t* HWY_RESTRICT to) {
    for (int64_t k = 0; k < num_k; k += kUnitSteps, units += kInt4UnitBytes)
        for (int64_t i = 0; i < kUnitValues; ++i)
            *to++ = f32_to_bf16(static_cast<float>(
                int4_value(static_cast<uint8_t>(units[byte_of_code(i)]), i / kInt4UnitBytes)));
}

#else

// Of four columns, k 0 and 1 of all before k 2 and 3: interleaved, bytes are words of pairs of k.
alignas(16) inline constexpr uint8_t kPairsApart[16] = {0, 1, 4, 5, 8,  9,  12, 13,
                                                        2, 3, 6, 7, 10, 11, 14, 15};

struct Int4Tables {
    ByteVector upper, lower, pairs_apart;

    HWY_INLINE Int4Tables()
        : upper(hn::LoadDup128(UnitBytes(), kInt4Bytes.upper)),
          lower(hn::LoadDup128(UnitBytes(), kInt4Bytes.lower)),
          pairs_apart(hn::LoadDup128(UnitBytes(), kPairsApart)) {}
};

// The kHalf-th 4 k of a unit, of all 16 columns: words of the first and of the second pair of k.
template <int kHalf, int kVector = 0>
HWY_INLINE void load_int4_pairs(const std::byte* unit, const Int4Tables& tables,
                                PairVector (&pairs)[2][kPanelVectors]) {
    if constexpr (kVector < kPanelVectors) {
        const UnitBytes d;
        const hn::Repartition<uint16_t, UnitBytes> d16;
        const hn::RebindToUnsigned<Floats> d32;
        const ByteVector codes = hn::TableLookupBytes(
            hn::Load(d, reinterpret_cast<const uint8_t*>(unit) + kVector * 4 * kLanes),
            tables.pairs_apart);
        const ByteVector shifted =
            kHalf == 0 ? codes : hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, codes)));
        const ByteVector code = hn::And(shifted, hn::Set(d, 15));
        const ByteVector upper = hn::TableLookupBytes(tables.upper, code);
        const ByteVector lower = hn::TableLookupBytes(tables.lower, code);
        pairs[0][kVector] = hn::BitCast(d32, hn::InterleaveLower(d, lower, upper));
        pairs[1][kVector] = hn::BitCast(d32, hn::InterleaveUpper(d, lower, upper));
        load_int4_pairs<kHalf, kVector + 1>(unit, tables, pairs);
    }
}

// num_k values of k of a panel, a multiple of 8, in panel.h's order of bf16.
HWY_NOINLINE void widen_int4(const std::byte* units, int64_t num_k, uint16_t* HWY_RESTRICT to) {
    const Int4Tables tables;
    PairVector pairs[2][kPanelVectors];
    for (int64_t k = 0; k < num_k; k += kUnitSteps, units += kInt4UnitBytes, to += kUnitValues) {
        load_int4_pairs<0>(units, tables, pairs);
        store_pairs(pairs, to);
        load_int4_pairs<1>(units, tables, pairs);
        store_pairs(pairs, to + kUnitValues / 2);
    }
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
