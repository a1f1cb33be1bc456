// Tiles of a product: up to 6 rows times as many panels as registers hold, over a stretch of k. An
// output element is one accumulation over k, ascending, in one lane of a register. Compiled once
// per instruction set.
#include <algorithm>
#include <bit>
#include <utility>

#include "layers/cpu/amx.h"
#include "layers/cpu/gemm_tile.h"
#include "layers/cpu/int4_panel-inl.h"
#include "layers/cpu/panel-inl.h"

#if defined(FERRY_LAYERS_CPU_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FERRY_LAYERS_CPU_GEMM_TILE_INL_H_
#undef FERRY_LAYERS_CPU_GEMM_TILE_INL_H_
#else
#define FERRY_LAYERS_CPU_GEMM_TILE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Sums that fit the registers beside the weights: 12 of AVX2's 16, 24 of the 32 elsewhere.
constexpr int kMaxSums = kLanes == 8 ? 12 : 24;
constexpr int kMaxSumsFp8 = kMaxSums * 2 / 3;  // widening takes some
constexpr int kMaxSumsInt4 = kLanes == 8 ? 4 : 16;
constexpr int kMaxPanels = 4;
constexpr int kTileRows = kLanes == 1 ? 2 : 6;
constexpr int64_t kPrefetchBytes = 2048;  // ahead of the panels of a tile, all together

// Panels that are compressed; what they are read as. kKeeps: and stored as, in Tile::wide.
template <class Plain>
struct Compressed : Plain {
    static constexpr int64_t kStepBytes = 0;  // Tile::first_k says where
    static constexpr bool kKeeps = false;
    using AsPlain = Plain;
};
template <class Plain>
struct KeptCompressed : Compressed<Plain> {
    static constexpr bool kKeeps = true;
};
template <class Panels>
concept IsCompressed = requires {
    typename Panels::AsPlain;
};

// Panels of int4 codes; what they are read as. Scaled group by group.
template <class Plain>
struct Int4 : Plain {
    static constexpr int kSteps = static_cast<int>(kUnitSteps);
    static constexpr int64_t kStepBytes = kInt4UnitBytes;
    using OfInt4 = Plain;
};
// The same, widened to plain panels.
template <class Plain>
struct WideInt4 : Plain {
    using OfInt4 = Plain;
};
template <class Panels>
concept IsInt4 = requires {
    typename Panels::OfInt4;
};
template <class Panels>
constexpr bool kIsWideInt4 = false;
template <class Plain>
constexpr bool kIsWideInt4<WideInt4<Plain>> = true;

template <class Panels>
constexpr bool kIsFp8 = std::is_same_v<Panels, Fp8Panels>;
#if FERRY_BF16_DOTS
template <class Panels>
constexpr bool kUsesDots = std::is_base_of_v<Bf16DotPanels, Panels>;
#else
template <class>
constexpr bool kUsesDots = false;
#endif

template <class Panels>
constexpr bool kSumsAsAmx = std::is_base_of_v<Bf16AmxPanels, Panels>;

// Panels of a tile of `rows` rows: 1, 2 or 4.
template <class Panels>
constexpr int panels_at_once(int64_t rows) {
    if (kSumsAsAmx<Panels>) return 1;
    const int sums = kIsFp8<Panels>                           ? kMaxSumsFp8
                     : IsInt4<Panels> && !kIsWideInt4<Panels> ? kMaxSumsInt4
                                                              : kMaxSums;
    const unsigned most = static_cast<unsigned>(sums / (static_cast<int>(rows) * kPanelVectors));
    return std::clamp(static_cast<int>(std::bit_floor(std::max(most, 1u))), 1, kMaxPanels);
}

// body(integral_constant 0), ... (kCount - 1), whatever the compiler thinks of unrolling.
template <int kCount, int kFirst = 0, typename Body>
HWY_INLINE void unrolled(const Body& body) {
    if constexpr (kFirst < kCount) {
        body(std::integral_constant<int, kFirst>());
        unrolled<kCount, kFirst + 1>(body);
    }
}

// sum += a * b, rounded once. In place where pairs of k are unrolled: GCC otherwise moves sums
// about between AVX2's 16 registers, and some of a tile's to memory, which costs a third of its
// speed.
template <class Panels>
HWY_INLINE void add_product(FloatVector a, FloatVector b, FloatVector& sum) {
#if HWY_TARGET == HWY_AVX2
    if constexpr (Panels::kSteps > 1) {
        __m256 in_place = sum.raw;
        asm("vfmadd231ps %2, %1, %0" : "+x"(in_place) : "x"(a.raw), "x"(b.raw));
        sum = FloatVector{in_place};
        return;
    }
#endif
    sum = fused_multiply_add(a, b, sum);
}

// One k: the kStep-th of those that `steps` points at, in every panel.
template <class Panels, int kStep, int kRows, int kPanels>
HWY_INLINE void accumulate_step(const std::byte* HWY_RESTRICT steps, int64_t panel_stride,
                                const float* HWY_RESTRICT x, int64_t x_stride,
                                FloatVector (&sums)[kRows][kPanels * kPanelVectors]) {
    unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
        const std::byte* panel = steps + p * panel_stride;
        // What is kept in registers beside the sums: the few values of x, or the weights.
        if constexpr (kRows <= 3) {
            unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
                const FloatVector w = Panels::template load<kStep, decltype(v)::value>(panel);
                unrolled<kRows>([&](auto r) FERRY_INLINE_BODY {
                    add_product<Panels>(hn::Set(Floats(), x[r * x_stride]), w,
                                        sums[r][p * kPanelVectors + v]);
                });
            });
        } else {
            FloatVector w[kPanelVectors];
            unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
                w[v] = Panels::template load<kStep, decltype(v)::value>(panel);
            });
            unrolled<kRows>([&](auto r) FERRY_INLINE_BODY {
                const FloatVector value = hn::Set(Floats(), x[r * x_stride]);
                unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
                    add_product<Panels>(value, w[v], sums[r][p * kPanelVectors + v]);
                });
            });
        }
    });
}

// sums[row][column] = fma(x, w, sums) over num_k values of k.
template <class Panels, int kRows, int kPanels>
HWY_INLINE void accumulate(const std::byte* HWY_RESTRICT panels, int64_t panel_stride,
                           const float* HWY_RESTRICT x, int64_t x_stride, int64_t num_k,
                           FloatVector (&sums)[kRows][kPanels * kPanelVectors]) {
    // A line of the cache at a time, unless that costs registers.
    constexpr int kLoads = kRows == kTileRows ? 1 : 64 / Panels::kStepBytes;
    constexpr int kUnrolled = kLoads * Panels::kSteps;
    constexpr int64_t kAhead = kPrefetchBytes / kPanels;
    const auto step = [&](auto index) FERRY_INLINE_BODY {
        constexpr int kIndex = decltype(index)::value;
        accumulate_step<Panels, kIndex % Panels::kSteps, kRows, kPanels>(
            panels + kIndex / Panels::kSteps * Panels::kStepBytes, panel_stride, x + kIndex,
            x_stride, sums);
    };
    int64_t k = 0;
    for (; k + kUnrolled <= num_k; k += kUnrolled) {
        for (int p = 0; p < kPanels; ++p) __builtin_prefetch(panels + p * panel_stride + kAhead);
        unrolled<kUnrolled>(step);
        panels += kLoads * Panels::kStepBytes;
        x += kUnrolled;
    }
    if constexpr (kUnrolled > 1)
        unrolled<kUnrolled - 1>([&](auto index) FERRY_INLINE_BODY {
            if (k + index < num_k) step(index);
        });
}

// The same in the order of AMX, of some rows at a time: each sum takes two others.
template <int kRows>
HWY_INLINE void accumulate_as_amx(const std::byte* HWY_RESTRICT panel, const float* HWY_RESTRICT x,
                                  int64_t x_stride, int64_t num_k,
                                  FloatVector (&sums)[kRows][kPanelVectors]) {
    constexpr int kAtOnce = std::clamp(kMaxSums / 2 / kPanelVectors, 1, kRows);
    const Floats d;
    for (int64_t k = 0; k < num_k; k += kAmxSteps) {
        const int64_t steps = std::min(kAmxSteps, num_k - k);
        unrolled<(kRows + kAtOnce - 1) / kAtOnce>([&](auto group) FERRY_INLINE_BODY {
            constexpr int kFirst = decltype(group)::value * kAtOnce;
            constexpr int kNum = std::min(kAtOnce, kRows - kFirst);
            FloatVector first[kNum][kPanelVectors], second[kNum][kPanelVectors];
            for (int r = 0; r < kNum; ++r)
                for (int v = 0; v < kPanelVectors; ++v) first[r][v] = second[r][v] = hn::Zero(d);
            const std::byte* pair = panel;
            const float* row = x + kFirst * x_stride + k;
            for (int64_t i = 0; i < steps; i += 2, pair += Bf16AmxPanels::kStepBytes, row += 2)
                unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
                    // Rows lie with each pair swapped, and load<0> is the second of a pair.
                    const FloatVector w[] = {Bf16AmxPanels::load<0, decltype(v)::value>(pair),
                                             Bf16AmxPanels::load<1, decltype(v)::value>(pair)};
                    unrolled<kNum>([&](auto r) FERRY_INLINE_BODY {
                        second[r][v] =
                            fused_multiply_add(hn::Set(d, row[r * x_stride]), w[0], second[r][v]);
                        first[r][v] = fused_multiply_add(hn::Set(d, row[r * x_stride + 1]), w[1],
                                                         first[r][v]);
                    });
                });
            for (int r = 0; r < kNum; ++r)
                for (int v = 0; v < kPanelVectors; ++v)
                    sums[kFirst + r][v] =
                        hn::Add(sums[kFirst + r][v], hn::Add(first[r][v], second[r][v]));
        });
        panel += kAmxSteps / 2 * Bf16AmxPanels::kStepBytes;
    }
}

#if FERRY_BF16_DOTS
// The same of rows in pairs of bf16; num_k is even. Of the next panels' memory a line or a part of
// it is prefetched at each step: many at once would wait for memory.
template <int kRows, int kPanels>
HWY_INLINE void accumulate_dots(const std::byte* HWY_RESTRICT panels, int64_t panel_stride,
                                const float* HWY_RESTRICT x, int64_t x_stride, int64_t num_k,
                                const std::byte* next, int64_t next_stride, int64_t next_bytes,
                                FloatVector (&sums)[kRows][kPanels]) {
    constexpr int64_t kAhead = kPrefetchBytes / kPanels;
    const int64_t advance = next_bytes * (2 * kPanels) / num_k;
    for (int64_t k = 0; k < num_k; k += 2, ++x, panels += Bf16DotPanels::kStepBytes) {
        __m512i w[kPanels];
        unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
            __builtin_prefetch(panels + p * panel_stride + kAhead);
            w[p] = _mm512_load_si512(panels + p * panel_stride);
        });
        const int64_t turn = k / 2 % kPanels;
        __builtin_prefetch(next + turn * next_stride, 0, 2);
        next += turn == kPanels - 1 ? advance : 0;
        unrolled<kRows>([&](auto r) FERRY_INLINE_BODY {
            const __m512i row = _mm512_castps_si512(_mm512_set1_ps(x[r * x_stride]));
            unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY { add_dots(w[p], row, sums[r][p]); });
        });
    }
}
#endif

#if HWY_TARGET != HWY_SCALAR
// sums += a pair of k of 16 columns by rows, whose values of them are at `row`.
template <class Plain, int kRows, int kPanel, int kSums>
HWY_INLINE void add_pair(const PairVector (&pair)[kPanelVectors], const float* HWY_RESTRICT row,
                         int64_t x_stride, FloatVector (&sums)[kRows][kSums]) {
    unrolled<kRows>([&](auto r) FERRY_INLINE_BODY {
        const float* x = row + r * x_stride;
        unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
            FloatVector& sum = sums[r][kPanel * kPanelVectors + v];
            constexpr bool kDots = kUsesDots<Plain>;
#if FERRY_BF16_DOTS
            if constexpr (kDots)
                add_dots(pair[v].raw, _mm512_castps_si512(_mm512_set1_ps(x[0])), sum);
#endif
            if constexpr (!kDots) {
                add_product<Plain>(hn::Set(Floats(), x[0]), Plain::template widen<0>(pair[v]), sum);
                add_product<Plain>(hn::Set(Floats(), x[1]), Plain::template widen<1>(pair[v]), sum);
            }
        });
    });
}

// The same of compressed panels; num_k is a multiple of 8. They become bf16 in registers, or, for
// KeptCompressed, in Tile::wide.
template <class Panels, int kRows, int kPanels>
HWY_INLINE void accumulate_compressed(const Tile& t, int64_t panel, const float* HWY_RESTRICT x,
                                      FloatVector (&sums)[kRows][kPanels * kPanelVectors]) {
    using Plain = typename Panels::AsPlain;
    constexpr int64_t kAhead = 2 * kPrefetchBytes / kPanels, kHalfValues = kUnitValues / 2;
    constexpr int kPairFloats = kUsesDots<Panels> ? 1 : 2;  // of a row, for a pair of k
    const std::byte* const panels = t.panels + panel * t.panel_stride;
    const std::byte* unit = compressed_units(panels) + t.first_k / kUnitSteps * kUnitBytes;
    uint16_t* wide = t.wide + panel * t.wide_values;
    const uint32_t* rare[kPanels];
    for (int p = 0; p < kPanels; ++p)
        rare[p] = first_rare(panels + p * t.panel_stride, t.in, t.first_k);
    int64_t place = t.first_k * kPanelColumns;
    for (int64_t k = 0; k < t.num_k; k += kUnitSteps) {
        unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
            for (int64_t line = 0; line < kUnitBytes; line += 64)
                __builtin_prefetch(unit + p * t.panel_stride + kAhead + line);
            const std::byte* head = panels + p * t.panel_stride;
            const float* row = x;
            // Both are read again for each panel: kept in registers, they push sums out.
            if constexpr (!kUsesDots<Panels>) asm volatile("" : "+r"(head), "+r"(row));
            const CodeTables tables(head);
            if constexpr (Panels::kKeeps) {
                uint16_t* const values = wide + p * t.wide_values;
                decompress_unit(unit + p * t.panel_stride, tables, values);
                rare[p] = put_rare(rare[p], place, place + kUnitValues, values);
                return;
            }
            unrolled<2>([&](auto half) FERRY_INLINE_BODY {
                PairVector pairs[2][kPanelVectors];
                load_all_pairs<decltype(half)::value>(unit + p * t.panel_stride, tables, pairs);
                const int64_t begin = place + half * kHalfValues, end = begin + kHalfValues;
                if (HWY_UNLIKELY(rare_place(*rare[p]) < end)) {
                    alignas(64) uint16_t values[kHalfValues];
                    store_pairs(pairs, values);
                    rare[p] = put_rare(rare[p], begin, end, values);
                    reload_pairs(values, pairs);
                }
                add_pair<Plain, kRows, decltype(p)::value>(pairs[0], row, t.x_stride, sums);
                row += kPairFloats;
                add_pair<Plain, kRows, decltype(p)::value>(pairs[1], row, t.x_stride, sums);
                row += kPairFloats;
            });
        });
        if constexpr (Panels::kKeeps) {
            // As bytes that the compiler knows nothing of: it would keep them in registers.
            const auto* plain = reinterpret_cast<const std::byte*>(wide);
            asm volatile("" : "+r"(plain));
#if FERRY_BF16_DOTS
            if constexpr (kUsesDots<Plain>)
                accumulate_dots<kRows, kPanels>(plain, 2 * t.wide_values, x, t.x_stride, kUnitSteps,
                                                plain, 0, 0, sums);
#endif
            if constexpr (!kUsesDots<Plain>)
                accumulate<Plain, kRows, kPanels>(plain, 2 * t.wide_values, x, t.x_stride,
                                                  kUnitSteps, sums);
            wide += kUnitValues;
        }
        unit += kUnitBytes;
        x += kUnitSteps / 2 * kPairFloats;
        place += kUnitValues;
    }
}
#endif

#if HWY_TARGET != HWY_SCALAR
// The same of one group of int4 codes.
template <class Plain, int kRows, int kPanels>
HWY_INLINE void accumulate_int4(const std::byte* HWY_RESTRICT unit, int64_t panel_stride,
                                const float* HWY_RESTRICT x, int64_t x_stride,
                                FloatVector (&sums)[kRows][kPanels * kPanelVectors]) {
    constexpr int64_t kAhead = kPrefetchBytes / kPanels;
    constexpr int kPairFloats = kUsesDots<Plain> ? 1 : 2;  // of a row, for a pair of k
    const Int4Tables tables;
    for (int64_t i = 0; i < kInt4UnitsOfGroup; ++i) {
        unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
            const std::byte* const from = unit + p * panel_stride;
            __builtin_prefetch(from + kAhead);
            const float* row = x;
            // Read again for each panel: kept in registers, values push sums out.
            if constexpr (!kUsesDots<Plain>) asm volatile("" : "+r"(row));
            unrolled<2>([&](auto half) FERRY_INLINE_BODY {
                PairVector pairs[2][kPanelVectors];
                load_int4_pairs<decltype(half)::value>(from, tables, pairs);
                add_pair<Plain, kRows, decltype(p)::value>(pairs[0], row, x_stride, sums);
                row += kPairFloats;
                add_pair<Plain, kRows, decltype(p)::value>(pairs[1], row, x_stride, sums);
                row += kPairFloats;
            });
        });
        unit += kInt4UnitBytes;
        x += kUnitSteps / 2 * kPairFloats;
    }
}
#endif

// y += one group of 32 k, scaled. A function of its own: among other loops the compiler keeps some
// of the sums in memory.
template <class Panels, int kRows, int kPanels>
HWY_NOINLINE void add_int4_group(const std::byte* HWY_RESTRICT panels, int64_t panel_stride,
                                 const uint16_t* HWY_RESTRICT scales, int64_t scales_stride,
                                 const float* HWY_RESTRICT x, int64_t x_stride,
                                 float* HWY_RESTRICT y, int64_t y_stride) {
    using Plain = typename Panels::OfInt4;
    constexpr int kVectors = kPanels * kPanelVectors;
    const Floats d;
    const hn::RebindToUnsigned<Floats> d32;
    const hn::Rebind<uint16_t, Floats> d16;
    FloatVector sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
    if constexpr (!kIsWideInt4<Panels>) {
#if HWY_TARGET != HWY_SCALAR
        accumulate_int4<Plain, kRows, kPanels>(panels, panel_stride, x, x_stride, sums);
#endif
    } else if constexpr (kUsesDots<Plain>) {
#if FERRY_BF16_DOTS
        accumulate_dots<kRows, kPanels>(panels, panel_stride, x, x_stride, kInt4Group, panels, 0, 0,
                                        sums);
#endif
    } else {
        accumulate<Plain, kRows, kPanels>(panels, panel_stride, x, x_stride, kInt4Group, sums);
    }
    for (int v = 0; v < kVectors; ++v) {
        const uint16_t* const of_vector =
            scales + v / kPanelVectors * scales_stride + v % kPanelVectors * kLanes;
        const FloatVector scale =
            hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, of_vector))));
        for (int r = 0; r < kRows; ++r) {
            float* to = y + r * y_stride + v * kLanes;
            hn::StoreU(fused_multiply_add(sums[r][v], scale, hn::LoadU(d, to)), d, to);
        }
    }
}

// int4, plain or widened: per group of 32 k, y = fma(sum of the group, scale, y).
template <class Panels, int kRows, int kPanels>
HWY_INLINE void scaled_int4_tile(const Tile& t, int64_t row, int64_t panel, float* HWY_RESTRICT y,
                                 int64_t y_stride) {
    using Plain = typename Panels::OfInt4;
    constexpr int64_t kGroupFloats = kUsesDots<Plain> ? kInt4Group / 2 : kInt4Group;  // of a row
    constexpr int64_t kGroupBytes = kInt4Group / Panels::kSteps * Panels::kStepBytes;
    const std::byte* panels = t.panels + panel * t.panel_stride;
    const uint16_t* scales = t.int4_scales + panel * t.int4_scales_stride;
    const float* x = t.x + row * t.x_stride;
    if (!t.resume)
        for (int r = 0; r < kRows; ++r)
            std::fill_n(y + r * y_stride, kPanels * kPanelColumns, 0.0f);
    for (int64_t k = 0; k < t.num_k; k += kInt4Group) {
        add_int4_group<Panels, kRows, kPanels>(panels, t.panel_stride, scales, t.int4_scales_stride,
                                               x, t.x_stride, y, y_stride);
        panels += kGroupBytes;
        scales += kPanelColumns;
        x += kGroupFloats;
    }
}

// Whole columns only, from that row and panel of t on. kScaled: per block of 128 k, y = fma(sum of
// the block, scale, y).
template <class Panels, bool kScaled, int kRows, int kPanels>
HWY_INLINE void whole_tile(const Tile& t, int64_t row, int64_t panel, float* HWY_RESTRICT y,
                           int64_t y_stride) {
    const std::byte* panels = t.panels + panel * t.panel_stride;
    const float* const x = t.x + row * t.x_stride;
    const Floats d;
    constexpr int kVectors = kPanels * kPanelVectors;
    FloatVector sums[kRows][kVectors];
    if constexpr (IsInt4<Panels>) {
        scaled_int4_tile<Panels, kRows, kPanels>(t, row, panel, y, y_stride);
    } else if constexpr (!kScaled) {
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                sums[r][v] = t.resume ? hn::LoadU(d, y + r * y_stride + v * kLanes) : hn::Zero(d);
#if HWY_TARGET != HWY_SCALAR
        if constexpr (IsCompressed<Panels> && !kSumsAsAmx<Panels>)
            accumulate_compressed<Panels, kRows, kPanels>(t, panel, x, sums);
#endif
#if FERRY_BF16_DOTS
        if constexpr (kUsesDots<Panels> && !IsCompressed<Panels>)
            accumulate_dots<kRows, kPanels>(panels, t.panel_stride, x, t.x_stride, t.num_k, t.next,
                                            t.next_stride, t.next_bytes, sums);
#endif
        if constexpr (kSumsAsAmx<Panels>)
            accumulate_as_amx<kRows>(panels, x, t.x_stride, t.num_k, sums);
        else if constexpr (!kUsesDots<Panels> && !IsCompressed<Panels>)
            accumulate<Panels, kRows, kPanels>(panels, t.panel_stride, x, t.x_stride, t.num_k,
                                               sums);
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                hn::StoreU(sums[r][v], d, y + r * y_stride + v * kLanes);
    } else {
        for (int64_t k = 0, block = 0; k < t.num_k; k += kScaleBlock, ++block) {
            const int64_t num_k = std::min(kScaleBlock, t.num_k - k);
            for (int r = 0; r < kRows; ++r)
                for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
            accumulate<Panels, kRows, kPanels>(panels, t.panel_stride, x + k, t.x_stride, num_k,
                                               sums);
            panels += kScaleBlock / Panels::kSteps * Panels::kStepBytes;
            for (int r = 0; r < kRows; ++r)
                for (int v = 0; v < kVectors; ++v) {
                    float* to = y + r * y_stride + v * kLanes;
                    const FloatVector before =
                        t.resume || block > 0 ? hn::LoadU(d, to) : hn::Zero(d);
                    const float scale =
                        t.x_scale(row + r, block) * t.w_scale(panel + v / kPanelVectors, block);
                    hn::StoreU(fused_multiply_add(sums[r][v], hn::Set(d, scale), before), d, to);
                }
        }
    }
}

template <class Panels, bool kScaled, int kRows, int kPanels>
HWY_NOINLINE void tile(const Tile& t, int64_t row, int64_t panel) {
    constexpr int64_t kColumns = kPanels * kPanelColumns;
    float* const to = t.y + row * t.y_stride + panel * kPanelColumns;
    const int64_t num_columns = std::min(kColumns, t.num_columns - panel * kPanelColumns);
    if (num_columns == kColumns)
        return whole_tile<Panels, kScaled, kRows, kPanels>(t, row, panel, to, t.y_stride);
    float part[kRows * kColumns];
    if (t.resume)
        for (int r = 0; r < kRows; ++r)
            std::copy_n(to + r * t.y_stride, num_columns, part + r * kColumns);
    whole_tile<Panels, kScaled, kRows, kPanels>(t, row, panel, part, kColumns);
    for (int r = 0; r < kRows; ++r)
        std::copy_n(part + r * kColumns, num_columns, to + r * t.y_stride);
}

// Panels [panel, num_panels) of rows from `row` on, as many at once as registers hold.
template <class Panels, bool kScaled, int kRows, int kPanels = panels_at_once<Panels>(kRows)>
void sweep_panels(const Tile& t, int64_t row, int64_t panel, int64_t num_panels) {
    for (; panel + kPanels <= num_panels; panel += kPanels)
        tile<Panels, kScaled, kRows, kPanels>(t, row, panel);
    if constexpr (kPanels > 1)
        if (panel < num_panels) sweep_panels<Panels, kScaled, kRows, 1>(t, row, panel, num_panels);
}

// Tiles of num_rows rows, which is one of kFewest..kMost.
template <class Panels, bool kScaled, int kFewest, int kMost>
void sweep(const Tile& t, int64_t row, int64_t num_rows, int64_t num_panels) {
    if constexpr (kFewest < kMost)
        if (num_rows > kFewest)
            return sweep<Panels, kScaled, kFewest + 1, kMost>(t, row, num_rows, num_panels);
    sweep_panels<Panels, kScaled, kFewest>(t, row, 0, num_panels);
}

// Rows in as few tiles as possible, of nearly equal height: body(first_row, num_rows).
template <int kHighest, typename Body>
HWY_INLINE void for_row_tiles(int64_t num_rows, Body&& body) {
    const int64_t num_tiles = ceil_div(num_rows, int64_t{kHighest});
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t first = num_rows * tile / num_tiles;
        body(first, num_rows * (tile + 1) / num_tiles - first);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#endif  // include toggle
