// Rows times packed panels. An output element is one accumulation over k, ascending, in one lane
// of a register; a tile is up to 6 rows times as many panels as registers hold.
//
// Few rows (decode) read every panel as it is stored, along the whole of k. More rows go block by
// block of k: the block of x is copied to scratch (rows of x lie a power of two apart, which caches
// dislike) and y holds the sums in between. Rows that are rounded to bf16 here are copied in any
// case: as pairs of bf16 for vdpbf16ps, elsewhere as f32 with each pair swapped. Rows that were
// rounded before lie where they lie. Compressed panels become bf16 in registers; with many rows the
// first tile stores what they are for the others.
#include "layers/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "base/random.h"
#include "comm/row_codec.h"
#include "comm/wire.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/gemm.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/compressed_panel-inl.h"
#include "layers/cpu/panel-inl.h"

#ifndef FERRY_LAYERS_CPU_GEMM_ONCE
#define FERRY_LAYERS_CPU_GEMM_ONCE
namespace ferry {
namespace {

constexpr int64_t kBlockK = 256;                       // of a block; a multiple of kScaleBlock
constexpr int64_t kBlockStride = kBlockK + 16;         // of x rows in scratch: not a power of two
constexpr int64_t kFewWireValues = int64_t{64} << 10;  // of few rows, in scratch: 256 KiB
constexpr int64_t kWideFloats = int64_t{33} << 10;     // of scratch, for panels in another form

struct Tile {
    const std::byte* panels;
    int64_t panel_stride;  // bytes
    const float* x;        // pairs of bf16 for dots; or one of the next two
    const uint16_t* rounded;
    const WireRow* wire;
    DType wire_dtype;
    int64_t x_stride;
    int64_t num_k;
    float* y;
    int64_t y_stride;
    int64_t num_columns;  // of y; the last panel may have more
    bool resume;          // y holds the sum of the k before
    // Compressed panels only: `panels` are whole ones, entered at that k; `wide`: room for what
    // they are, [panels][wide_values] in panel.h's order.
    int64_t in;
    int64_t first_k;
    uint16_t* wide;
    int64_t wide_values;
    // fp8 only. w_scales: of the matrix, at the tile's first block of k.
    int64_t first_panel;
    const float* w_scales;
    int64_t w_scales_stride;
    const float* x_scales;  // at the tile's first row and block, or null
    int64_t x_scales_stride;

    float w_scale(int64_t panel, int64_t block) const {
        constexpr int64_t kPanelsPerBlock = kScaleBlock / kPanelColumns;
        return w_scales[(first_panel + panel) / kPanelsPerBlock * w_scales_stride + block];
    }
    float x_scale(int64_t row, int64_t block) const {
        return x_scales != nullptr ? x_scales[row * x_scales_stride + block] : 1.0f;
    }
    Tile from_panel(int64_t panel) const {
        Tile tile = *this;
        tile.panels += panel * panel_stride;
        tile.first_panel += panel;
        tile.y += panel * kPanelColumns;
        tile.num_columns -= panel * kPanelColumns;
        return tile;
    }
};

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Sums that fit the registers beside the weights: 12 of AVX2's 16, 24 of the 32 elsewhere.
constexpr int kMaxSums = kLanes == 8 ? 12 : 24;
constexpr int kMaxSumsFp8 = kMaxSums * 2 / 3;  // widening takes some
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

template <class Panels>
constexpr bool kIsFp8 = std::is_same_v<Panels, Fp8Panels>;
#if FERRY_BF16_DOTS
template <class Panels>
constexpr bool kUsesDots = std::is_base_of_v<Bf16DotPanels, Panels>;
#else
template <class>
constexpr bool kUsesDots = false;
#endif

// Panels of a tile of `rows` rows: 1, 2 or 4.
template <class Panels>
constexpr int panels_at_once(int64_t rows) {
    const unsigned most = static_cast<unsigned>((kIsFp8<Panels> ? kMaxSumsFp8 : kMaxSums) /
                                                (static_cast<int>(rows) * kPanelVectors));
    return std::clamp(static_cast<int>(std::bit_floor(std::max(most, 1u))), 1, kMaxPanels);
}

// Rows of a tile that reads panels as they are stored.
template <class Panels>
constexpr int direct_rows() {
    return kIsFp8<Panels> ? std::min(4, kTileRows) : kTileRows;
}

// More rows than this go by blocks of k. Fewer decompress panels for every tile of rows, which FMAs
// leave time for.
template <class Panels>
constexpr int few_rows() {
    if (kIsFp8<Panels>) return 2 * kTileRows;
    if (!IsCompressed<Panels>) return 6 * kTileRows;
    return (kLanes < 16 || kUsesDots<Panels> ? 3 : 6) * kTileRows;
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

#if FERRY_BF16_DOTS
// The same of rows in pairs of bf16; num_k is even.
template <int kRows, int kPanels>
HWY_INLINE void accumulate_dots(const std::byte* HWY_RESTRICT panels, int64_t panel_stride,
                                const float* HWY_RESTRICT x, int64_t x_stride, int64_t num_k,
                                FloatVector (&sums)[kRows][kPanels]) {
    constexpr int64_t kAhead = kPrefetchBytes / kPanels;
    for (int64_t k = 0; k < num_k; k += 2, ++x, panels += Bf16DotPanels::kStepBytes) {
        __m512i w[kPanels];
        unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
            __builtin_prefetch(panels + p * panel_stride + kAhead);
            w[p] = Bf16DotPanels::load_pairs(panels + p * panel_stride);
        });
        unrolled<kRows>([&](auto r) FERRY_INLINE_BODY {
            const __m512i row = _mm512_castps_si512(_mm512_set1_ps(x[r * x_stride]));
            unrolled<kPanels>([&](auto p) FERRY_INLINE_BODY {
                sums[r][p].raw = Bf16DotPanels::add(w[p], row, sums[r][p].raw);
            });
        });
    }
}
#endif

// Either.
template <class Panels, int kRows, int kPanels>
HWY_INLINE void add_steps(const std::byte* HWY_RESTRICT panels, int64_t panel_stride,
                          const float* HWY_RESTRICT x, int64_t x_stride, int64_t num_k,
                          FloatVector (&sums)[kRows][kPanels * kPanelVectors]) {
#if FERRY_BF16_DOTS
    if constexpr (kUsesDots<Panels>)
        return accumulate_dots<kRows, kPanels>(panels, panel_stride, x, x_stride, num_k, sums);
    else
#endif
        accumulate<Panels, kRows, kPanels>(panels, panel_stride, x, x_stride, num_k, sums);
}

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
                sum.raw =
                    Plain::add(pair[v].raw, _mm512_castps_si512(_mm512_set1_ps(x[0])), sum.raw);
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
            add_steps<Plain, kRows, kPanels>(plain, 2 * t.wide_values, x, t.x_stride, kUnitSteps,
                                             sums);
            wide += kUnitValues;
        }
        unit += kUnitBytes;
        x += kUnitSteps / 2 * kPairFloats;
        place += kUnitValues;
    }
}
#endif

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
    if constexpr (!kScaled) {
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                sums[r][v] = t.resume ? hn::LoadU(d, y + r * y_stride + v * kLanes) : hn::Zero(d);
#if HWY_TARGET != HWY_SCALAR
        if constexpr (IsCompressed<Panels>)
            accumulate_compressed<Panels, kRows, kPanels>(t, panel, x, sums);
#endif
        if constexpr (!IsCompressed<Panels>)
            add_steps<Panels, kRows, kPanels>(panels, t.panel_stride, x, t.x_stride, t.num_k, sums);
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

// Every panel is read as it is stored, along the whole of k; a second tile of rows finds it in the
// cache.
template <class Panels, bool kScaled>
void multiply_few_rows(const Tile& all, int64_t num_rows, int64_t num_panels) {
    constexpr int kHighest = direct_rows<Panels>();
    const int64_t at_once = num_rows <= kHighest ? num_panels : int64_t{kMaxPanels};
    for (int64_t panel = 0; panel < num_panels; panel += at_once) {
        const Tile part = all.from_panel(panel);
        for_row_tiles<kHighest>(num_rows, [&](int64_t row, int64_t rows) HWY_ATTR {
            sweep<Panels, kScaled, 1, kHighest>(part, row, rows,
                                                std::min(at_once, num_panels - panel));
        });
    }
}

// bf16 values as f32 with each pair swapped: what Bf16PairPanels takes. An even number.
void swap_pairs(const uint16_t* HWY_RESTRICT rounded, int64_t num, float* HWY_RESTRICT to) {
    for (int64_t i = 0; i < num; ++i) {
        const uint32_t bits = rounded[i ^ 1];
        const bool is_normal = (bits & 0x7f80u) != 0;  // vdpbf16ps takes others for zero
        to[i] = std::bit_cast<float>(is_normal ? bits << 16 : 0u);
    }
}

// Values of a row rounded to bf16, as Panels takes them; an even number.
template <class Panels>
void round_row(const float* HWY_RESTRICT from, int64_t num, float* HWY_RESTRICT to) {
    if constexpr (kUsesDots<Panels>) {
        encode_row(DType::bf16, from, num, reinterpret_cast<std::byte*>(to), nullptr);
        return;
    }
    constexpr int64_t kAtOnce = 256;
    uint16_t rounded[kAtOnce];
    for (int64_t begin = 0; begin < num; begin += kAtOnce) {
        const int64_t count = std::min(kAtOnce, num - begin);
        encode_row(DType::bf16, from + begin, count, reinterpret_cast<std::byte*>(rounded),
                   nullptr);
        swap_pairs(rounded, count, to + begin);
    }
}

// Values [first, first + num) of a row that travelled.
HWY_INLINE void decode_part(const Tile& all, int64_t row, int64_t first, int64_t num, float* to) {
    const WireRow& from = all.wire[row];
    decode_row(all.wire_dtype, from.values + first * size_bytes(all.wire_dtype),
               from.scales != nullptr ? from.scales + first / kWireScaleBlock : nullptr, num, to);
}

// `to` has room for num floats, also where pairs need half of it: rows are copied in order, and the
// next one's place may be written to before its turn.
template <class Panels>
void copy_rounded(const Tile& all, int64_t row, int64_t first, int64_t num, float* to) {
    if (all.rounded != nullptr) {
        swap_pairs(all.rounded + row * all.x_stride + first, num, to);
    } else if (all.wire == nullptr) {
        round_row<Panels>(all.x + row * all.x_stride + first, num, to);
    } else if (all.wire_dtype == DType::f32) {
        round_row<Panels>(reinterpret_cast<const float*>(all.wire[row].values) + first, num, to);
    } else if (kUsesDots<Panels> && all.wire_dtype == DType::bf16) {
        std::memcpy(to, all.wire[row].values + first * 2, static_cast<size_t>(num) * 2);
    } else {
        decode_part(all, row, first, num, to);
        for (int64_t begin = 0; begin < num; begin += kBlockK) {
            float values[kBlockK];
            const int64_t count = std::min(kBlockK, num - begin);
            std::copy_n(to + begin, count, values);
            round_row<Panels>(values, count, to + (kUsesDots<Panels> ? begin / 2 : begin));
        }
    }
}

// The part of a tile that has k in [first, first + most), a multiple of kScaleBlock; its x is put
// into `x`, rows x_stride apart.
template <class Panels>
Tile block_of(const Tile& all, int64_t num_rows, int64_t first, int64_t most, float* x,
              int64_t x_stride) {
    Tile block = all;
    block.num_k = std::min(most, all.num_k - first);
    block.resume = first > 0;
    block.first_k = first;
    block.panels += first / Panels::kSteps * Panels::kStepBytes;
    if (block.w_scales != nullptr) block.w_scales += first / kScaleBlock;
    if (block.x_scales != nullptr) block.x_scales += first / kScaleBlock;
    if (kUsesDots<Panels> && all.rounded != nullptr) {  // where they lie
        block.x = reinterpret_cast<const float*>(all.rounded + first);
        block.x_stride = all.x_stride / 2;
        return block;
    }
    for (int64_t row = 0; row < num_rows; ++row) {
        if constexpr (Panels::kRounds) {
            copy_rounded<Panels>(all, row, first, block.num_k, x + row * x_stride);
            continue;
        }
        if (all.wire == nullptr) {
            std::memcpy(x + row * x_stride, all.x + row * all.x_stride + first,
                        static_cast<size_t>(block.num_k) * sizeof(float));
            continue;
        }
        decode_part(all, row, first, block.num_k, x + row * x_stride);
    }
    block.x = x;
    block.x_stride = x_stride;
    return block;
}

// Few rows as they travelled, or rounded: along as much of k as the second-level cache holds of
// them.
template <class Panels, bool kScaled>
void multiply_few_copied_rows(const Tile& all, int64_t num_rows, int64_t num_panels,
                              float* scratch) {
    float* const x = scratch + kWideFloats;
    const int64_t most = kFewWireValues / num_rows / kScaleBlock * kScaleBlock;
    const int64_t stride = std::min(most, all.num_k) + kBlockStride - kBlockK;
    for (int64_t k = 0; k < all.num_k; k += most) {
        multiply_few_rows<Panels, kScaled>(block_of<Panels>(all, num_rows, k, most, x, stride),
                                           num_rows, num_panels);
    }
}

// num_k values of k of a panel, as f32 [k][16].
template <class Panels>
HWY_NOINLINE void widen(const std::byte* HWY_RESTRICT panel, int64_t num_k,
                        float* HWY_RESTRICT wide) {
    for (int64_t k = 0; k < num_k; k += Panels::kSteps) {
        unrolled<Panels::kSteps>([&](auto step) FERRY_INLINE_BODY {
            unrolled<kPanelVectors>([&](auto v) FERRY_INLINE_BODY {
                hn::Store(Panels::template load<decltype(step)::value, decltype(v)::value>(panel),
                          Floats(), wide + step * kPanelColumns + v * kLanes);
            });
        });
        panel += Panels::kStepBytes;
        wide += Panels::kSteps * kPanelColumns;
    }
}

// Compressed panels as they are stored: whole units only.
template <class Panels>
bool enters_registers(const Tile& t) {
    return !IsCompressed<Panels> || (HWY_TARGET != HWY_SCALAR && t.num_k % kUnitSteps == 0);
}

// What panels become for many rows.
template <class Panels>
struct WidePanels {
    using type = Panels;
};
template <>
struct WidePanels<Fp8Panels> {
    using type = F32Panels;
};
template <IsCompressed Panels>
struct WidePanels<Panels> {
    using type = typename Panels::AsPlain;
};

template <class Panels, bool kScaled>
void multiply_many_rows(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    // Two steps of widening fp8 cost as much as a tile of rows: done once. bf16's shift and mask
    // find room beside the FMAs. So does what compressed panels take, in the first tile, which
    // stores it for the others.
    using TilePanels = typename WidePanels<Panels>::type;
    constexpr int64_t kChunk = panels_at_once<TilePanels>(kTileRows);
    constexpr int kMany = few_rows<Panels>() + 1;
    constexpr int kFewest =  // rows of a tile
        IsCompressed<Panels> ? 1 : kMany / ((kMany + kTileRows - 1) / kTileRows);
    float* const wide = scratch;
    float* const x = scratch + kWideFloats;
    constexpr int64_t kAtOnce = kUsesDots<Panels> ? 4 * kBlockK : kBlockK;
    constexpr int64_t kStride =
        (kUsesDots<Panels> ? 2 * kBlockK : kBlockK) + kBlockStride - kBlockK;
    for (int64_t k = 0; k < all.num_k; k += kAtOnce) {
        const Tile block = block_of<Panels>(all, num_rows, k, kAtOnce, x, kStride);
        const bool by_first_tile = enters_registers<Panels>(block);
        const std::byte* stored = block.panels;
        int64_t block_bytes = ceil_div(block.num_k, Panels::kSteps) * Panels::kStepBytes;
        if constexpr (IsCompressed<Panels>) {
            stored = compressed_units(stored) + k / kUnitSteps * kUnitBytes;
            block_bytes = num_units(block.num_k) * kUnitBytes;
        }
        for (int64_t panel = 0; panel < num_panels; panel += kChunk) {
            Tile chunk = block.from_panel(panel), first = chunk;
            const int64_t chunk_panels = std::min(kChunk, num_panels - panel);
            if constexpr (IsCompressed<Panels>) {
                // Past a power of two, for the sake of the caches.
                constexpr int64_t kWideValues = (kAtOnce + kUnitSteps) * kPanelColumns;
                first.wide = reinterpret_cast<uint16_t*>(wide);
                first.wide_values = kWideValues;
                if (!by_first_tile)
                    for (int64_t p = 0; p < chunk_panels; ++p)
                        decompress(chunk.panels + p * all.panel_stride, all.in, k, block.num_k,
                                   first.wide + p * kWideValues);
                chunk.panels = reinterpret_cast<const std::byte*>(wide);
                chunk.panel_stride = 2 * kWideValues;
            } else if constexpr (kIsFp8<Panels>) {
                for (int64_t p = 0; p < chunk_panels; ++p)
                    widen<Panels>(chunk.panels + p * all.panel_stride, block.num_k,
                                  wide + p * kBlockK * kPanelColumns);
                chunk.panels = reinterpret_cast<const std::byte*>(wide);
                chunk.panel_stride = kBlockK * kPanelColumns * static_cast<int64_t>(sizeof(float));
            }
            // Blocks are too short for the hardware to foresee the next one. Some lines before each
            // tile: all at once would wait for memory.
            const std::byte* const next = stored + (panel + chunk_panels) * all.panel_stride;
            for_row_tiles<kTileRows>(num_rows, [&](int64_t row, int64_t rows) HWY_ATTR {
                const int64_t begin = row * block_bytes / num_rows / 64 * 64;
                const int64_t end = (row + rows) * block_bytes / num_rows;
                for (int64_t p = 0; p < chunk_panels; ++p)
                    for (int64_t line = begin; line < end; line += 64)
                        __builtin_prefetch(next + p * all.panel_stride + line, 0, 2);
                if constexpr (IsCompressed<Panels>)
                    if (row == 0 && by_first_tile)
                        return sweep<KeptCompressed<TilePanels>, kScaled, kFewest, kTileRows>(
                            first, row, rows, chunk_panels);
                sweep<TilePanels, kScaled, kFewest, kTileRows>(chunk, row, rows, chunk_panels);
            });
        }
    }
}

template <class Panels, bool kScaled>
void multiply(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    if (num_rows > few_rows<Panels>() || !enters_registers<Panels>(all))
        multiply_many_rows<Panels, kScaled>(all, num_rows, num_panels, scratch);
    else if (all.wire != nullptr || Panels::kRounds)
        multiply_few_copied_rows<Panels, kScaled>(all, num_rows, num_panels, scratch);
    else
        multiply_few_rows<Panels, kScaled>(all, num_rows, num_panels);
}

void multiply_f32(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply<F32Panels, false>(all, num_rows, num_panels, scratch);
}
void multiply_bf16(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply<Bf16Panels, false>(all, num_rows, num_panels, scratch);
}

#if FERRY_BF16_DOTS
// The processor's vdpbf16ps adds as Bf16PairPanels does: its order and rounding are no part of all
// makers' manuals, and ranks on other processors must find the same bits.
bool dots_add_in_order() {
    constexpr int64_t kRows = kTileRows, kNumK = 128, kSums = kRows * kPanelColumns;
    alignas(64) uint16_t panel[kNumK * kPanelColumns];
    float x[kRows * kNumK], sums[2][kSums];
    std::vector<float> scratch(kGemmScratchBytes / sizeof(float));
    Random random(1);
    for (uint16_t& value : panel)
        value = static_cast<uint16_t>(std::bit_cast<uint32_t>(random.next_normal()) >> 16);
    for (float& value : x) value = random.next_normal();
    Tile tile{};
    tile.panels = reinterpret_cast<const std::byte*>(panel);
    tile.x = x;
    tile.x_stride = tile.num_k = kNumK;
    tile.y_stride = tile.num_columns = kPanelColumns;
    tile.y = sums[0];
    multiply<Bf16DotPanels, false>(tile, kRows, 1, scratch.data());
    tile.y = sums[1];
    multiply<Bf16PairPanels, false>(tile, kRows, 1, scratch.data());
    return std::equal(sums[0], sums[0] + kSums, sums[1]);
}

bool uses_bf16_dots() {
    static const bool uses = __builtin_cpu_supports("avx512bf16") && dots_add_in_order();
    return uses;
}
#endif

template <template <class> class Form>
void multiply_bf16_rounded_in(const Tile& all, int64_t num_rows, int64_t num_panels,
                              float* scratch) {
#if FERRY_BF16_DOTS
    if (uses_bf16_dots())
        return multiply<Form<Bf16DotPanels>, false>(all, num_rows, num_panels, scratch);
#endif
    multiply<Form<Bf16PairPanels>, false>(all, num_rows, num_panels, scratch);
}
void multiply_bf16_rounded(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply_bf16_rounded_in<std::type_identity_t>(all, num_rows, num_panels, scratch);
}
void multiply_compressed(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply<Compressed<Bf16Panels>, false>(all, num_rows, num_panels, scratch);
}
void multiply_compressed_rounded(const Tile& all, int64_t num_rows, int64_t num_panels,
                                 float* scratch) {
    multiply_bf16_rounded_in<Compressed>(all, num_rows, num_panels, scratch);
}
void multiply_fp8(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply<Fp8Panels, true>(all, num_rows, num_panels, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_bf16);
HWY_EXPORT(multiply_bf16_rounded);
HWY_EXPORT(multiply_compressed);
HWY_EXPORT(multiply_compressed_rounded);
HWY_EXPORT(multiply_fp8);

void gemm_panels(const Weight& weight, const GemmRows& rows, const GemmStrides& strides,
                 int64_t first_panel, int64_t num_panels, std::byte* scratch) {
    const WeightSpec& spec = weight.spec;
    const int64_t stride =
        strides.compressed ? compressed_panel_bytes(spec.in) : panel_bytes(spec.dtype, spec.in);
    const int64_t k_blocks = ceil_div(spec.in, kScaleBlock);
    const Tile tile{
        .panels = weight.group_data(rows.group) + first_panel * stride,
        .panel_stride = stride,
        .x = rows.x,
        .rounded = rows.rounded,
        .wire = rows.wire,
        .wire_dtype = strides.wire_dtype,
        .x_stride = strides.x,
        .num_k = spec.in,
        .y = rows.y + first_panel * kPanelColumns,
        .y_stride = strides.y,
        .num_columns = std::min(num_panels * kPanelColumns, spec.out - first_panel * kPanelColumns),
        .resume = false,
        .in = spec.in,
        .first_k = 0,
        .wide = nullptr,
        .wide_values = 0,
        .first_panel = first_panel,
        .w_scales = spec.dtype == DType::fp8_e4m3 ? weight.group_scales(rows.group) : nullptr,
        .w_scales_stride = k_blocks,
        .x_scales = rows.x_scales,
        .x_scales_stride = strides.x_scales,
    };
    float* const floats = reinterpret_cast<float*>(scratch);
    switch (spec.dtype) {
        case DType::f32:
            return HWY_DYNAMIC_DISPATCH(multiply_f32)(tile, rows.num_rows, num_panels, floats);
        case DType::bf16:
            if (strides.rounds_rows) {
                if (strides.compressed)
                    return HWY_DYNAMIC_DISPATCH(multiply_compressed_rounded)(tile, rows.num_rows,
                                                                             num_panels, floats);
                return HWY_DYNAMIC_DISPATCH(multiply_bf16_rounded)(tile, rows.num_rows, num_panels,
                                                                   floats);
            }
            if (strides.compressed)
                return HWY_DYNAMIC_DISPATCH(multiply_compressed)(tile, rows.num_rows, num_panels,
                                                                 floats);
            return HWY_DYNAMIC_DISPATCH(multiply_bf16)(tile, rows.num_rows, num_panels, floats);
        default:
            return HWY_DYNAMIC_DISPATCH(multiply_fp8)(tile, rows.num_rows, num_panels, floats);
    }
}

}  // namespace ferry
#endif  // HWY_ONCE
