// Reading compressed panels (compressed_panel.h). Compiled once per instruction set.
#include <algorithm>

#include "layers/cpu/compressed_panel.h"
#include "layers/cpu/panel-inl.h"

#if defined(FERRY_LAYERS_CPU_COMPRESSED_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_COMPRESSED_PANEL_INL_H_
#undef FERRY_LAYERS_CPU_COMPRESSED_PANEL_INL_H_
#else
#define FERRY_LAYERS_CPU_COMPRESSED_PANEL_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// The first rare value of k >= first_k.
inline const uint32_t* first_rare(const std::byte* panel, int64_t in, int64_t first_k) {
    const uint32_t* rare = rare_values(panel, in);
    if (first_k == 0) return rare;
    while (rare_place(*rare) < first_k * kPanelColumns) ++rare;
    return rare;
}

// Into the values [first_place, end_place); returns what is behind them.
inline const uint32_t* put_rare(const uint32_t* rare, int64_t first_place, int64_t end_place,
                                uint16_t* values) {
    for (; rare_place(*rare) < end_place; ++rare)
        values[rare_place(*rare) - first_place] |= rare_bits(*rare);
    return rare;
}

#if HWY_TARGET == HWY_SCALAR

inline void decompress_units(const std::byte* panel, int64_t first_unit, int64_t end_unit,
                             uint16_t* HWY_RESTRICT to) {
    const auto& head = *reinterpret_cast<const CompressedHead*>(panel);
    const auto* unit =
        reinterpret_cast<const uint8_t*>(compressed_units(panel) + first_unit * kUnitBytes);
    for (; first_unit < end_unit; ++first_unit, unit += kUnitBytes)
        for (int64_t i = 0; i < kUnitValues; ++i) {
            const int64_t half = i / 64;
            const uint8_t byte = unit[half * 128 + byte_of_value(i)];
            const int code = unit[64 + byte_of_value(i)] >> 4 * half & 15;
            *to++ = static_cast<uint16_t>(((byte & 0x80u) | head.upper[code]) << 8 |
                                          (byte & 0x7fu) | head.lower[code]);
        }
}

#else

using UnitBytes = hn::Repartition<uint8_t, Floats>;
using ByteVector = hn::Vec<UnitBytes>;
using PairVector = hn::Vec<hn::RebindToUnsigned<Floats> >;

struct CodeTables {
    ByteVector upper, lower;

    explicit HWY_INLINE CodeTables(const std::byte* panel)
        : upper(hn::LoadDup128(UnitBytes(), reinterpret_cast<const CompressedHead*>(panel)->upper)),
          lower(
              hn::LoadDup128(UnitBytes(), reinterpret_cast<const CompressedHead*>(panel)->lower)) {}
};

// The kHalf-th 4 k of a unit: words of the first and of the second pair of k, of kLanes columns
// from kVector * kLanes on.
template <int kHalf, int kVector>
HWY_INLINE void load_pairs(const std::byte* unit, const CodeTables& tables, PairVector& first,
                           PairVector& second) {
    const UnitBytes d;
    const hn::Repartition<uint16_t, UnitBytes> d16;
    const hn::RebindToUnsigned<Floats> d32;
    const auto load = [&](int64_t at) FERRY_INLINE_BODY {
        return hn::Load(d, reinterpret_cast<const uint8_t*>(unit) + at + kVector * 4 * kLanes);
    };
    const ByteVector bytes = load(kHalf * kUnitValues), codes = load(kUnitValues / 2);
    const ByteVector shifted =
        kHalf == 0 ? codes : hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, codes)));
    const ByteVector code = hn::And(shifted, hn::Set(d, 15));
    const ByteVector upper =
        hn::OrAnd(hn::TableLookupBytes(tables.upper, code), bytes, hn::Set(d, 0x80));
    const ByteVector lower =
        hn::OrAnd(hn::TableLookupBytes(tables.lower, code), bytes, hn::Set(d, 0x7f));
    first = hn::BitCast(d32, hn::InterleaveLower(d, lower, upper));
    second = hn::BitCast(d32, hn::InterleaveUpper(d, lower, upper));
}

// As load_pairs, of all 16 columns: pairs[0] and pairs[1].
template <int kHalf, int kVector = 0>
HWY_INLINE void load_all_pairs(const std::byte* unit, const CodeTables& tables,
                               PairVector (&pairs)[2][kPanelVectors]) {
    if constexpr (kVector < kPanelVectors) {
        load_pairs<kHalf, kVector>(unit, tables, pairs[0][kVector], pairs[1][kVector]);
        load_all_pairs<kHalf, kVector + 1>(unit, tables, pairs);
    }
}

HWY_INLINE void store_pairs(const PairVector (&pairs)[2][kPanelVectors], uint16_t* values) {
    const hn::RebindToUnsigned<Floats> d;
    auto* const words = reinterpret_cast<uint32_t*>(values);
    for (int v = 0; v < 2 * kPanelVectors; ++v)
        hn::Store(pairs[v / kPanelVectors][v % kPanelVectors], d, words + v * kLanes);
}

HWY_INLINE void reload_pairs(const uint16_t* values, PairVector (&pairs)[2][kPanelVectors]) {
    const hn::RebindToUnsigned<Floats> d;
    const auto* const words = reinterpret_cast<const uint32_t*>(values);
    for (int v = 0; v < 2 * kPanelVectors; ++v)
        pairs[v / kPanelVectors][v % kPanelVectors] = hn::Load(d, words + v * kLanes);
}

HWY_INLINE void decompress_unit(const std::byte* unit, const CodeTables& tables,
                                uint16_t* HWY_RESTRICT to) {
    PairVector pairs[2][kPanelVectors];
    load_all_pairs<0>(unit, tables, pairs);
    store_pairs(pairs, to);
    load_all_pairs<1>(unit, tables, pairs);
    store_pairs(pairs, to + kUnitValues / 2);
}

inline void decompress_units(const std::byte* panel, int64_t first_unit, int64_t end_unit,
                             uint16_t* HWY_RESTRICT to) {
    const CodeTables tables(panel);
    const std::byte* unit = compressed_units(panel) + first_unit * kUnitBytes;
    for (; first_unit < end_unit; ++first_unit, unit += kUnitBytes, to += kUnitValues)
        decompress_unit(unit, tables, to);
}

#endif

// Values of k in [first_k, first_k + num_k), the first a multiple of 8, the number filled up to
// one, in panel.h's order.
HWY_NOINLINE void decompress(const std::byte* panel, int64_t in, int64_t first_k, int64_t num_k,
                             uint16_t* HWY_RESTRICT to) {
    const int64_t end_unit = num_units(first_k + num_k);
    decompress_units(panel, first_k / kUnitSteps, end_unit, to);
    put_rare(first_rare(panel, in, first_k), first_k * kPanelColumns, end_unit * kUnitValues, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
