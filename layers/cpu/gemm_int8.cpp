// Rows that are rounded to int8 times panels of int4 codes (int4_panel.h).
//
// Of each 32 values of a row, s = max |x| / 127 and q = x * (127 / max |x|), to the nearest whole
// number, ties to even; all 0 where max |x| is below kLeastMagnitude, s NaN where it is not finite.
// Sums of a group are whole numbers, exact in any order:
//   y = fma(sum of (code - 8) q, s * scale of the weights, y), group after group.
//
// Codes are multiplied as they are, 0 to 15, so a sum begins with -8 times the q.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "comm/row_codec.h"
#include "comm/wire.h"
#include "layers/cpu/gemm.h"
#include "layers/cpu/gemm_tile.h"
#include "layers/cpu/int4_panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/gemm_int8.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

#ifndef FERRY_LAYERS_CPU_GEMM_INT8_ONCE
#define FERRY_LAYERS_CPU_GEMM_INT8_ONCE
namespace ferry {
namespace {

constexpr float kLeastMagnitude = 1e-30f;
constexpr int64_t kMostValues = int64_t{192} << 10;  // of rows at a time: second-level cache
constexpr int64_t kDecodedValues = 1024;             // of a row, on the way to int8
static_assert(kMostValues / kGemmMaxRows >= kDecodedValues &&
              kDecodedValues % kWireScaleBlock == 0);
static_assert(kMostValues + 8 * kMostValues / kInt4Group + 4 * kDecodedValues + 64 <=
              static_cast<int64_t>(kGemmScratchBytes));

// Rows of one tile as products take them, in scratch: what is read together lies together.
struct Int8Rows {
    int32_t* fours;  // [num_k / 4][num_rows]: q of 4 k
    float* scales;   // [groups][num_rows]
    int32_t* first;  // [groups][num_rows]: what a sum begins with, as its kind of sums has it
    int64_t num_rows;
};

// One panel along a block of k.
struct Int4Block {
    const uint8_t* units;
    const uint16_t* scales;
    int64_t num_groups;
};

constexpr int64_t kInt4GroupBytes = kInt4UnitsOfGroup * kInt4UnitBytes;

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Kinds of sums. kRows: of a tile. add: sum += codes of 4 k of some columns * those k of a row.
// first: -8 times the q of a group, [k % 4] of them in `of_k`. whole: the sums as int32 of columns.
#if HWY_ARCH_X86 && HWY_MAX_BYTES >= 32
#if HWY_MAX_BYTES == 64
using IntVector = __m512i;
HWY_INLINE IntVector load_codes(const uint8_t* from) {
    return _mm512_load_si512(from);
}
HWY_INLINE IntVector low_halves(IntVector codes) {
    return _mm512_and_si512(codes, _mm512_set1_epi8(15));
}
HWY_INLINE IntVector high_halves(IntVector codes) {
    return low_halves(_mm512_srli_epi16(codes, 4));
}
HWY_INLINE IntVector broadcast(int32_t value) {
    return _mm512_set1_epi32(value);
}
HWY_INLINE IntVector multiply_pairs(IntVector codes, IntVector row) {
    return _mm512_maddubs_epi16(codes, row);
}
HWY_INLINE IntVector add_neighbours(IntVector sums) {
    return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
}
HWY_INLINE FloatVector as_floats(IntVector sums) {
    return FloatVector{_mm512_cvtepi32_ps(sums)};
}
#else
using IntVector = __m256i;
HWY_INLINE IntVector load_codes(const uint8_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
HWY_INLINE IntVector low_halves(IntVector codes) {
    return _mm256_and_si256(codes, _mm256_set1_epi8(15));
}
HWY_INLINE IntVector high_halves(IntVector codes) {
    return low_halves(_mm256_srli_epi16(codes, 4));
}
HWY_INLINE IntVector broadcast(int32_t value) {
    return _mm256_set1_epi32(value);
}
HWY_INLINE IntVector multiply_pairs(IntVector codes, IntVector row) {
    return _mm256_maddubs_epi16(codes, row);
}
HWY_INLINE IntVector add_neighbours(IntVector sums) {
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}
HWY_INLINE FloatVector as_floats(IntVector sums) {
    return FloatVector{_mm256_cvtepi32_ps(sums)};
}
#endif

// Sums of 16 bits of two k of four each: at most 15 * 127 * 16 in magnitude, wherever they stand.
struct PairSums {
    static constexpr int kRows = HWY_MAX_BYTES == 64 ? 8 : 4;
    static HWY_INLINE void add(IntVector& sum, IntVector codes, IntVector row) {
        // In place: GCC adds in another order otherwise, and keeps all products in memory for it.
        IntVector in_place = sum;
        asm("vpaddw %1, %0, %0" : "+v"(in_place) : "v"(multiply_pairs(codes, row)));
        sum = in_place;
    }
    static HWY_INLINE IntVector whole(IntVector sum) { return add_neighbours(sum); }
    static HWY_INLINE int32_t first(const int32_t (&of_k)[4]) {
        return static_cast<int32_t>(static_cast<uint32_t>(-8 * (of_k[2] + of_k[3])) << 16 |
                                    (static_cast<uint32_t>(-8 * (of_k[0] + of_k[1])) & 0xffffu));
    }
};

#if HWY_MAX_BYTES == 64
// Sums of 32 bits by vpdpbusd (AVX512_VNNI), which Highway has no target for here.
struct DotSums {
    static constexpr int kRows = 8;
    static HWY_INLINE void add(IntVector& sum, IntVector codes, IntVector row) {
        IntVector in_place = sum;
        asm("vpdpbusd %2, %1, %0" : "+v"(in_place) : "v"(codes), "v"(row));
        sum = in_place;
    }
    static HWY_INLINE IntVector whole(IntVector sum) { return sum; }
    static HWY_INLINE int32_t first(const int32_t (&of_k)[4]) {
        return -8 * (of_k[0] + of_k[1] + of_k[2] + of_k[3]);
    }
};
#endif

// y += groups of one panel; `rows` are kRows.
template <class Sums, int kRows>
HWY_NOINLINE void add_groups(const Int4Block& block, const Int8Rows& rows, float* HWY_RESTRICT y,
                             int64_t y_stride) {
    constexpr int64_t kAhead = 2048;  // prefetched
    constexpr int kVectors = static_cast<int>(kPanelColumns) / kLanes;
    const Floats d;
    const hn::RebindToUnsigned<Floats> d32;
    const hn::Rebind<uint16_t, Floats> d16;
    const uint8_t* HWY_RESTRICT unit = block.units;
    const uint16_t* HWY_RESTRICT w_scales = block.scales;
    const int32_t* HWY_RESTRICT fours = rows.fours;
    const float* HWY_RESTRICT scales = rows.scales;
    const int32_t* HWY_RESTRICT first = rows.first;
    for (int64_t group = 0; group < block.num_groups; ++group) {
        IntVector sums[kRows][kVectors];
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v) sums[r][v] = broadcast(first[r]);
#pragma GCC unroll 4
        for (int u = 0; u < kInt4UnitsOfGroup; ++u) {
            __builtin_prefetch(unit + u * kInt4UnitBytes + kAhead);
            IntVector codes[2][kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const IntVector both = load_codes(unit + u * kInt4UnitBytes + v * 4 * kLanes);
                codes[0][v] = low_halves(both);
                codes[1][v] = high_halves(both);
            }
            for (int half = 0; half < 2; ++half)
                for (int r = 0; r < kRows; ++r) {
                    const IntVector of_row = broadcast(fours[(2 * u + half) * kRows + r]);
                    for (int v = 0; v < kVectors; ++v)
                        Sums::add(sums[r][v], codes[half][v], of_row);
                }
        }
        for (int v = 0; v < kVectors; ++v) {
            const FloatVector scale = hn::BitCast(
                d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, w_scales + v * kLanes))));
            for (int r = 0; r < kRows; ++r) {
                float* const to = y + r * y_stride + v * kLanes;
                const FloatVector product = hn::Mul(scale, hn::Set(d, scales[r]));
                hn::StoreU(
                    hn::MulAdd(as_floats(Sums::whole(sums[r][v])), product, hn::LoadU(d, to)), d,
                    to);
            }
        }
        unit += kInt4GroupBytes;
        w_scales += kPanelColumns;
        fours += kInt4Group / 4 * kRows;
        scales += kRows;
        first += kRows;
    }
}
#else
struct PlainSums {
    static constexpr int kRows = 1;
    static int32_t first(const int32_t (&of_k)[4]) {
        return -8 * (of_k[0] + of_k[1] + of_k[2] + of_k[3]);
    }
};

template <class Sums, int kRows>
void add_groups(const Int4Block& block, const Int8Rows& rows, float* y, int64_t) {
    const uint8_t* unit = block.units;
    const auto* q = reinterpret_cast<const int8_t*>(rows.fours);
    for (int64_t group = 0; group < block.num_groups; ++group) {
        int32_t sums[kPanelColumns];
        std::fill_n(sums, kPanelColumns, rows.first[group]);
        for (int u = 0; u < kInt4UnitsOfGroup; ++u, unit += kInt4UnitBytes, q += kUnitSteps)
            for (int64_t column = 0; column < kPanelColumns; ++column)
                for (int64_t k = 0; k < 4; ++k)
                    sums[column] +=
                        (unit[4 * column + k] & 15) * q[k] + (unit[4 * column + k] >> 4) * q[k + 4];
        for (int64_t column = 0; column < kPanelColumns; ++column)
            y[column] = std::fma(
                static_cast<float>(sums[column]),
                bf16_to_f32(block.scales[group * kPanelColumns + column]) * rows.scales[group],
                y[column]);
    }
}
#endif

// 32 values; returns their scale.
template <class Sums>
HWY_INLINE float round_group(const float* HWY_RESTRICT x, int8_t* HWY_RESTRICT q, int32_t* first) {
    const Floats d;
    const hn::RebindToUnsigned<Floats> d32;
    auto most = hn::Zero(d32);  // as whole numbers: infinity is above all finite ones, NaN beyond
    for (int64_t i = 0; i < kInt4Group; i += kLanes)
        most = hn::Max(most,
                       hn::And(hn::BitCast(d32, hn::LoadU(d, x + i)), hn::Set(d32, 0x7fffffffu)));
    alignas(64) uint32_t lanes[kLanes];
    hn::Store(most, d32, lanes);
    const uint32_t bits = *std::max_element(lanes, lanes + kLanes);
    const float largest = std::bit_cast<float>(bits);
    const bool finite = bits < 0x7f800000u, zero = !(largest >= kLeastMagnitude);
    if (!finite || zero) {
        std::fill_n(q, kInt4Group, int8_t{0});
        *first = 0;
        return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
    const FloatVector inverse = hn::Set(d, 127.0f / largest);
    alignas(64) int32_t of_k[4] = {};
#if HWY_TARGET == HWY_SCALAR
    for (int64_t i = 0; i < kInt4Group; ++i) {
        const int32_t value = hn::GetLane(hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse)));
        q[i] = static_cast<int8_t>(value);
        of_k[i % 4] += value;
    }
#else
    const hn::RebindToSigned<Floats> di;
    const hn::Rebind<int8_t, Floats> d8;
    auto sum = hn::Zero(di);
    for (int64_t i = 0; i < kInt4Group; i += kLanes) {
        const auto values = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
        hn::StoreU(hn::DemoteTo(d8, values), d8, q + i);
        sum = hn::Add(sum, values);
    }
    alignas(64) int32_t of_lane[kLanes];
    hn::Store(sum, di, of_lane);
    for (int lane = 0; lane < kLanes; ++lane) of_k[lane % 4] += of_lane[lane];
#endif
    *first = Sums::first(of_k);
    return largest / 127;
}

// Values [first, first + num) of a row of x as f32, rounded to bf16 before if asked: where they
// lie, or in `to`.
const float* row_values(const Tile& all, bool rounds, int64_t row, int64_t first, int64_t num,
                        float* to, std::byte* rounded) {
    if (all.rounded != nullptr) {
        decode_row(DType::bf16,
                   reinterpret_cast<const std::byte*>(all.rounded + row * all.x_stride + first),
                   nullptr, num, to);
        return to;
    }
    const float* values = all.wire == nullptr ? all.x + row * all.x_stride + first : to;
    if (all.wire != nullptr) {
        const WireRow& from = all.wire[row];
        decode_row(all.wire_dtype, from.values + first * size_bytes(all.wire_dtype),
                   from.scales != nullptr ? from.scales + first / kWireScaleBlock : nullptr, num,
                   to);
        rounds &= all.wire_dtype != DType::bf16;
    }
    if (!rounds) return values;
    encode_row(DType::bf16, values, num, rounded, nullptr);
    decode_row(DType::bf16, rounded, nullptr, num, to);
    return to;
}

// Values [first, first + num) of rows [row, row + rows.num_rows) of x.
template <class Sums>
void round_rows(const Tile& all, bool rounds, int64_t row, int64_t first, int64_t num,
                const Int8Rows& rows) {
    constexpr int64_t kFours = kInt4Group / 4;
    alignas(64) float values[kDecodedValues];
    alignas(64) std::byte rounded[2 * kDecodedValues];
    alignas(64) int8_t q[kInt4Group];
    for (int64_t r = 0; r < rows.num_rows; ++r)
        for (int64_t begin = 0; begin < num; begin += kDecodedValues) {
            const int64_t count = std::min(kDecodedValues, num - begin);
            const float* x =
                row_values(all, rounds, row + r, first + begin, count, values, rounded);
            for (int64_t i = 0; i < count; i += kInt4Group) {
                const int64_t group = (begin + i) / kInt4Group, at = group * rows.num_rows + r;
                rows.scales[at] = round_group<Sums>(x + i, q, rows.first + at);
                for (int64_t four = 0; four < kFours; ++four)
                    std::memcpy(rows.fours + (group * kFours + four) * rows.num_rows + r,
                                q + 4 * four, 4);
            }
        }
}

// add_groups of up to kMost rows.
template <class Sums, int kMost>
HWY_INLINE void add_tile(const Int4Block& block, const Int8Rows& rows, float* y, int64_t y_stride) {
    if constexpr (kMost > 1)
        if (rows.num_rows < kMost) return add_tile<Sums, kMost - 1>(block, rows, y, y_stride);
    add_groups<Sums, kMost>(block, rows, y, y_stride);
}

template <class Sums>
void multiply(const Tile& all, bool rounds, int64_t num_rows, int64_t num_panels,
              std::byte* scratch) {
    if (num_rows == 0) return;
    const int64_t most = kMostValues / num_rows / kDecodedValues * kDecodedValues;
    const int64_t num_tiles = ceil_div(num_rows, int64_t{Sums::kRows});
    const auto first_row = [&](int64_t tile) { return num_rows * tile / num_tiles; };
    for (int64_t k = 0; k < all.num_k; k += most) {
        const int64_t num_k = std::min(most, all.num_k - k), groups = num_k / kInt4Group;
        auto* const scales = reinterpret_cast<float*>(scratch);
        auto* const first = reinterpret_cast<int32_t*>(scales + num_rows * groups);
        auto* const fours = first + num_rows * groups;
        const auto rows_of = [&](int64_t tile) {
            const int64_t row = first_row(tile);
            return Int8Rows{fours + row * num_k / 4, scales + row * groups, first + row * groups,
                            first_row(tile + 1) - row};
        };
        for (int64_t tile = 0; tile < num_tiles; ++tile)
            round_rows<Sums>(all, rounds, first_row(tile), k, num_k, rows_of(tile));
        for (int64_t panel = 0; panel < num_panels; ++panel) {
            const Int4Block block{
                reinterpret_cast<const uint8_t*>(all.panels) + panel * all.panel_stride +
                    k / kUnitSteps * kInt4UnitBytes,
                all.int4_scales + panel * all.int4_scales_stride + k / kInt4Group * kPanelColumns,
                groups};
            const int64_t columns =
                std::min(kPanelColumns, all.num_columns - panel * kPanelColumns);
            for (int64_t tile = 0; tile < num_tiles; ++tile) {
                const Int8Rows rows = rows_of(tile);
                float* const y = all.y + first_row(tile) * all.y_stride + panel * kPanelColumns;
                if (columns == kPanelColumns) {
                    if (k == 0)
                        for (int64_t r = 0; r < rows.num_rows; ++r)
                            std::fill_n(y + r * all.y_stride, kPanelColumns, 0.0f);
                    add_tile<Sums, Sums::kRows>(block, rows, y, all.y_stride);
                    continue;
                }
                alignas(64) float wide[Sums::kRows * kPanelColumns] = {};
                if (k > 0)
                    for (int64_t r = 0; r < rows.num_rows; ++r)
                        std::copy_n(y + r * all.y_stride, columns, wide + r * kPanelColumns);
                add_tile<Sums, Sums::kRows>(block, rows, wide, kPanelColumns);
                for (int64_t r = 0; r < rows.num_rows; ++r)
                    std::copy_n(wide + r * kPanelColumns, columns, y + r * all.y_stride);
            }
        }
    }
}

void multiply_int4_by_int8(const Tile& all, bool rounds, int64_t num_rows, int64_t num_panels,
                           std::byte* scratch) {
#if HWY_ARCH_X86 && HWY_MAX_BYTES >= 32
#if HWY_MAX_BYTES == 64
    static const bool has_dots = __builtin_cpu_supports("avx512vnni");
    if (has_dots) return multiply<DotSums>(all, rounds, num_rows, num_panels, scratch);
#endif
    multiply<PairSums>(all, rounds, num_rows, num_panels, scratch);
#else
    multiply<PlainSums>(all, rounds, num_rows, num_panels, scratch);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(multiply_int4_by_int8);

void gemm_int4_by_int8(const Tile& tile, bool rounds_rows, int64_t num_rows, int64_t num_panels,
                       std::byte* scratch) {
    HWY_DYNAMIC_DISPATCH(multiply_int4_by_int8)(tile, rounds_rows, num_rows, num_panels, scratch);
}

}  // namespace ferry
#endif  // HWY_ONCE
