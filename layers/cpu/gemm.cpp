// Rows times packed panels, cut into tiles (gemm_tile-inl.h).
//
// Few rows (decode) read every panel as it is stored, along the whole of k. More rows go block by
// block of k: the block of x is copied to scratch (rows of x lie a power of two apart, which caches
// dislike) and y holds the sums in between. Rows that are rounded to bf16 here are copied in any
// case: as pairs of bf16 for vdpbf16ps, elsewhere as f32 with each pair swapped. Rows that were
// rounded before lie where they lie. Compressed panels become bf16 in registers; with many rows the
// first tile stores what they are for the others.
#include "layers/cpu/gemm.h"

#include <algorithm>
#include <bit>
#include <cstring>
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
#include "layers/cpu/gemm_tile-inl.h"

#ifndef FERRY_LAYERS_CPU_GEMM_ONCE
#define FERRY_LAYERS_CPU_GEMM_ONCE
namespace ferry {
namespace {

constexpr int64_t kBlockK = 256;      // of a block; a multiple of kScaleBlock
constexpr int64_t kBlockDots = 2048;  // the same of pairs of bf16
constexpr int64_t kBlockAmx = 512;  // of many rows by AMX: two panels stay in the first-level cache
constexpr int64_t kStridePad = 16;  // of x rows in scratch: no power of two
constexpr int64_t kFewWireValues = int64_t{64} << 10;  // of few rows, in scratch: 256 KiB
constexpr int64_t kWideFloats = int64_t{66} << 10;     // of scratch, for panels in another form
static_assert(4 * (kWideFloats + kGemmMaxRows * (kBlockDots / 2 + kStridePad)) <=
              kGemmScratchBytes);

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Rows of a tile that reads panels as they are stored.
template <class Panels>
constexpr int direct_rows() {
    const bool few = kIsFp8<Panels> || (IsInt4<Panels> && kLanes == 8);
    return few ? std::min(4, kTileRows) : kTileRows;
}

// More rows than this go by blocks of k. Fewer decompress panels for every tile of rows, which FMAs
// leave time for.
template <class Panels>
constexpr int few_rows() {
    if (kIsFp8<Panels>) return 2 * kTileRows;
    if (!IsCompressed<Panels> && !IsInt4<Panels>) return 6 * kTileRows;
    return (kLanes < 16 || kUsesDots<Panels> ? 3 : 6) * kTileRows;
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
    } else if (all.wire_dtype == DType::bf16) {
        const std::byte* const values = all.wire[row].values + first * 2;
        if constexpr (kUsesDots<Panels>)
            std::memcpy(to, values, static_cast<size_t>(num) * 2);
        else
            swap_pairs(reinterpret_cast<const uint16_t*>(values), num, to);
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
    if (block.int4_scales != nullptr) block.int4_scales += first / kInt4Group * kPanelColumns;
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
    const int64_t stride = std::min(most, all.num_k) + kStridePad;
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
    if (IsInt4<Panels>) return HWY_TARGET != HWY_SCALAR;
    return !IsCompressed<Panels> ||
           (!kSumsAsAmx<Panels> && HWY_TARGET != HWY_SCALAR && t.num_k % kUnitSteps == 0);
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
template <class Plain>
struct WidePanels<Int4<Plain>> {
    using type = WideInt4<Plain>;
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
        IsCompressed<Panels> || IsInt4<Panels> ? 1 : kMany / ((kMany + kTileRows - 1) / kTileRows);
    float* const wide = scratch;
    float* const x = scratch + kWideFloats;
    constexpr int64_t kAtOnce = kUsesDots<Panels> ? kBlockDots : kBlockK;
    constexpr int64_t kStride = (kUsesDots<Panels> ? kAtOnce / 2 : kAtOnce) + kStridePad;
    // Blocks of about equal length.
    const int64_t num_blocks = ceil_div(all.num_k, kAtOnce);
    const int64_t block_k = ceil_div(all.num_k, num_blocks * kScaleBlock) * kScaleBlock;
    for (int64_t k = 0; k < all.num_k; k += block_k) {
        const Tile block = block_of<Panels>(all, num_rows, k, block_k, x, kStride);
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
            // Past a power of two, for the sake of the caches.
            constexpr int64_t kWideValues = (kAtOnce + kUnitSteps) * kPanelColumns;
            if constexpr (IsInt4<Panels>) {
                for (int64_t p = 0; p < chunk_panels; ++p)
                    widen_int4(chunk.panels + p * all.panel_stride, block.num_k,
                               reinterpret_cast<uint16_t*>(wide) + p * kWideValues);
                chunk.panels = reinterpret_cast<const std::byte*>(wide);
                chunk.panel_stride = 2 * kWideValues;
            } else if constexpr (IsCompressed<Panels>) {
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
                if (kUsesDots<Panels> && !IsInt4<Panels> &&
                    !(IsCompressed<Panels> && row == 0 && by_first_tile)) {
                    chunk.next = next + begin;
                    chunk.next_stride = all.panel_stride;
                    chunk.next_bytes = end - begin;
                } else {
                    for (int64_t p = 0; p < chunk_panels; ++p)
                        for (int64_t line = begin; line < end; line += 64)
                            __builtin_prefetch(next + p * all.panel_stride + line, 0, 2);
                }
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
// Whether both ways to multiply have the same bits of random rows and kNumPanels panels.
template <int64_t kRows, int64_t kNumPanels, int64_t kNumK, class Multiply, class OtherWay>
bool multiply_alike(Multiply&& multiply_rows, OtherWay&& other_way) {
    constexpr int64_t kColumns = kNumPanels * kPanelColumns, kSums = kRows * kColumns;
    alignas(64) uint16_t panels[kNumK * kColumns];
    float x[kRows * kNumK], sums[2][kSums];
    std::vector<float> scratch(kGemmScratchBytes / sizeof(float));
    Random random(1);
    for (uint16_t& value : panels)
        value = static_cast<uint16_t>(std::bit_cast<uint32_t>(random.next_normal()) >> 16);
    for (float& value : x) value = random.next_normal();
    Tile tile{};
    tile.panels = tile.next = reinterpret_cast<const std::byte*>(panels);
    tile.panel_stride = kNumK * kPanelColumns * 2;
    tile.x = x;
    tile.x_stride = tile.num_k = kNumK;
    tile.y_stride = tile.num_columns = kColumns;
    tile.y = sums[0];
    multiply_rows(tile, kRows, kNumPanels, scratch.data());
    tile.y = sums[1];
    other_way(tile, kRows, kNumPanels, scratch.data());
    return std::equal(sums[0], sums[0] + kSums, sums[1]);
}

// The processor's vdpbf16ps adds as Bf16PairPanels does: its order and rounding are no part of all
// makers' manuals, and ranks on other processors must find the same bits.
bool dots_add_in_order() {
    return multiply_alike<kTileRows, 1, 128>(multiply<Bf16DotPanels, false>,
                                             multiply<Bf16PairPanels, false>);
}

bool dots_work() {
    static const bool work = __builtin_cpu_supports("avx512bf16") && dots_add_in_order();
    return work;
}
#else
bool dots_work() {
    return false;
}
#endif

#if FERRY_BF16_DOTS && FERRY_HAS_AMX
// Plain or compressed panels of bf16. Few rows go along as much of k as scratch holds of them.
template <class Panels>
void multiply_by_tiles(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    constexpr int64_t kStride = kBlockDots / 2 + kStridePad;
    constexpr int64_t kWideValues = (kBlockDots + kUnitSteps) * kPanelColumns;
    auto* const wide = reinterpret_cast<uint16_t*>(scratch);
    static_assert(kAmxPanels * kWideValues * 2 <= 4 * kWideFloats);
    const int64_t most = num_rows <= kAmxRows ? kBlockDots : kBlockAmx;
    int64_t length = 0;
    for (int64_t k = 0; k < all.num_k; k += length) {
        length = std::min(most, all.num_k - k);
        if (length > kAmxSteps) length -= length % kAmxSteps;  // the rest is a block of its own
        const Tile block =
            block_of<Panels>(all, num_rows, k, length, scratch + kWideFloats, kStride);
        for (int64_t panel = 0; panel < num_panels; panel += kAmxPanels) {
            const Tile chunk = block.from_panel(panel);
            AmxBlock amx{.x = reinterpret_cast<const std::byte*>(chunk.x),
                         .x_stride = chunk.x_stride * 4,
                         .num_rows = num_rows,
                         .panels = chunk.panels,
                         .panel_stride = all.panel_stride,
                         .num_panels = std::min(kAmxPanels, num_panels - panel),
                         .num_k = length,
                         .y = chunk.y,
                         .y_stride = chunk.y_stride,
                         .num_columns = chunk.num_columns,
                         .resume = chunk.resume,
                         .next = nullptr,
                         .next_stride = all.panel_stride};
            if constexpr (IsCompressed<Panels>) {
                for (int64_t p = 0; p < amx.num_panels; ++p)
                    decompress(chunk.panels + p * all.panel_stride, all.in, k, length,
                               wide + p * kWideValues);
                amx.panels = reinterpret_cast<const std::byte*>(wide);
                amx.panel_stride = 2 * kWideValues;
            } else if (panel + 2 * kAmxPanels <= num_panels) {
                amx.next = chunk.panels + kAmxPanels * all.panel_stride;
            }
            multiply_by_amx(amx);
        }
    }
    release_amx();
}

// AMX adds as amx.h says.
bool amx_adds_in_order() {
    return multiply_alike<19, 2, 2 * kAmxSteps + 6>(multiply_by_tiles<Bf16DotPanels>,
                                                    multiply<Bf16AmxPanels, false>);
}

bool amx_works() {
    if (!has_amx()) return false;
    static const bool works = amx_adds_in_order();
    return works;
}
#else
bool amx_works() {
    return false;
}
#endif

template <template <class> class Form>
void multiply_in_amx_order(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
#if FERRY_BF16_DOTS && FERRY_HAS_AMX
    if (amx_works())
        return multiply_by_tiles<Form<Bf16DotPanels>>(all, num_rows, num_panels, scratch);
#endif
    multiply<Form<Bf16AmxPanels>, false>(all, num_rows, num_panels, scratch);
}
void multiply_bf16_amx(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply_in_amx_order<std::type_identity_t>(all, num_rows, num_panels, scratch);
}
void multiply_compressed_amx(const Tile& all, int64_t num_rows, int64_t num_panels,
                             float* scratch) {
    multiply_in_amx_order<Compressed>(all, num_rows, num_panels, scratch);
}

template <template <class> class Form>
void multiply_bf16_rounded_in(const Tile& all, int64_t num_rows, int64_t num_panels,
                              float* scratch) {
#if FERRY_BF16_DOTS
    if (dots_work())
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
void multiply_int4(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply<Int4<Bf16Panels>, false>(all, num_rows, num_panels, scratch);
}
void multiply_int4_rounded(const Tile& all, int64_t num_rows, int64_t num_panels, float* scratch) {
    multiply_bf16_rounded_in<Int4>(all, num_rows, num_panels, scratch);
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
HWY_EXPORT(multiply_int4);
HWY_EXPORT(multiply_int4_rounded);
HWY_EXPORT(multiply_fp8);
HWY_EXPORT(multiply_bf16_amx);
HWY_EXPORT(multiply_compressed_amx);
HWY_EXPORT(dots_work);
HWY_EXPORT(amx_works);

bool uses_bf16_dots() {
    return HWY_DYNAMIC_DISPATCH(dots_work)();
}

bool uses_amx() {
    return HWY_DYNAMIC_DISPATCH(amx_works)();
}

void gemm_panels(const Weight& weight, const GemmRows& rows, const GemmStrides& strides,
                 int64_t first_panel, int64_t num_panels, std::byte* scratch) {
    const WeightSpec& spec = weight.spec;
    const bool is_int4 = spec.dtype == DType::int4x2;
    const int64_t stride = is_int4              ? int4_panel_bytes(spec.in)
                           : strides.compressed ? compressed_panel_bytes(spec.in)
                                                : panel_bytes(spec.dtype, spec.in);
    const int64_t k_blocks = ceil_div(spec.in, kScaleBlock);
    const std::byte* const panels = weight.group_data(rows.group) + first_panel * stride;
    const Tile tile{
        .panels = is_int4 ? int4_units(panels, spec.in) : panels,
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
        .next = panels,
        .next_stride = 0,
        .next_bytes = 0,
        .first_panel = first_panel,
        .w_scales = spec.dtype == DType::fp8_e4m3 ? weight.group_scales(rows.group) : nullptr,
        .w_scales_stride = k_blocks,
        .x_scales = rows.x_scales,
        .x_scales_stride = strides.x_scales,
        .int4_scales = is_int4 ? int4_scales(panels) : nullptr,
        .int4_scales_stride = is_int4 ? stride / 2 : 0,
    };
    float* const floats = reinterpret_cast<float*>(scratch);
    switch (spec.dtype) {
        case DType::f32:
            return HWY_DYNAMIC_DISPATCH(multiply_f32)(tile, rows.num_rows, num_panels, floats);
        case DType::bf16:
            if (strides.rounds_rows && strides.amx_sums) {
                if (strides.compressed)
                    return HWY_DYNAMIC_DISPATCH(multiply_compressed_amx)(tile, rows.num_rows,
                                                                         num_panels, floats);
                return HWY_DYNAMIC_DISPATCH(multiply_bf16_amx)(tile, rows.num_rows, num_panels,
                                                               floats);
            }
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
        case DType::int4x2:
            if (strides.int8_rows)
                return gemm_int4_by_int8(tile, strides.rounds_rows, rows.num_rows, num_panels,
                                         scratch);
            if (strides.rounds_rows)
                return HWY_DYNAMIC_DISPATCH(multiply_int4_rounded)(tile, rows.num_rows, num_panels,
                                                                   floats);
            return HWY_DYNAMIC_DISPATCH(multiply_int4)(tile, rows.num_rows, num_panels, floats);
        default:
            return HWY_DYNAMIC_DISPATCH(multiply_fp8)(tile, rows.num_rows, num_panels, floats);
    }
}

}  // namespace ferry
#endif  // HWY_ONCE
