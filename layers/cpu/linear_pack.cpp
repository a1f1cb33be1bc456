// Packing weights into panels (panel.h), and back. Packing is on the way of loading a checkpoint:
// a line of 64 bytes of 16 rows at a time goes through a small buffer, so that rows which lie a
// power of two apart do not fight for the same cache set. Panels are written past the caches: what
// is stored is whole lines of memory that nobody reads soon.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/linear_pack.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "layers/cpu/exponent_codes.h"
#include "layers/cpu/int4_panel.h"
#include "layers/cpu/panel_rows.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

HWY_INLINE uint32_t word_of(const Lines& lines, int64_t row, int64_t word) {
    uint32_t value;
    std::memcpy(&value, lines.data + row * lines.stride_bytes + word * 4, sizeof(value));
    return value;
}

template <bool kStreams>
HWY_INLINE void transpose(const Lines& lines, uint32_t* HWY_RESTRICT packed) {
    for (int64_t k = 0; k < kLineBytes / 4; ++k)
        for (int64_t row = 0; row < kPanelColumns; ++row)
            packed[k * kPanelColumns + row] = word_of(lines, row, k);
}

using LargestCode = uint32_t;
HWY_INLINE LargestCode no_code() {
    return 0;
}
HWY_INLINE void keep_largest(uint32_t codes, LargestCode& largest) {
    for (int shift = 0; shift < 32; shift += 8) largest = std::max(largest, codes >> shift & 0x7fu);
}
HWY_INLINE bool is_nan(LargestCode largest) {
    return largest == 0x7fu;
}

HWY_INLINE void transpose_pairs(const Lines& lines, uint32_t* HWY_RESTRICT packed,
                                LargestCode& largest) {
    for (int64_t k = 0; k < kLineBytes / 4; ++k)
        for (int64_t row = 0; row < 8; ++row) {
            const uint32_t low = word_of(lines, row, k), high = word_of(lines, row + 8, k);
            keep_largest(low, largest);
            keep_largest(high, largest);
            packed[2 * k * 8 + row] = (low & 0xffffu) | (high << 16);
            packed[(2 * k + 1) * 8 + row] = (low >> 16) | (high & 0xffff0000u);
        }
}

#else

using Block = hn::FixedTag<uint32_t, 4>;  // one size on every target: instructions are plenty here
using BlockVector = hn::Vec<Block>;

// Four words of a row.
HWY_INLINE BlockVector load_block(const Lines& lines, int64_t row, int64_t word) {
    return hn::LoadU(Block(), reinterpret_cast<const uint32_t*>(
                                  lines.data + row * lines.stride_bytes + word * 4));
}

// packed[k * width + row] = rows[row][k] for 4 rows and 4 k.
template <bool kStreams>
HWY_INLINE void transpose_4x4(const BlockVector (&rows)[4], int64_t width,
                              uint32_t* HWY_RESTRICT packed) {
    const Block d;
    const hn::RepartitionToWide<Block> wide;
    const auto pair = [&](auto a, auto b)
                          HWY_ATTR { return hn::BitCast(wide, hn::InterleaveLower(d, a, b)); };
    const auto upper_pair = [&](auto a, auto b) HWY_ATTR {
        return hn::BitCast(wide, hn::InterleaveUpper(d, a, b));
    };
    const auto put = [&](auto v, uint32_t* to) HWY_ATTR {
        if constexpr (kStreams)
            hn::Stream(hn::BitCast(d, v), d, to);
        else
            hn::Store(hn::BitCast(d, v), d, to);
    };
    const auto low01 = pair(rows[0], rows[1]), low23 = pair(rows[2], rows[3]);
    const auto high01 = upper_pair(rows[0], rows[1]), high23 = upper_pair(rows[2], rows[3]);
    put(hn::InterleaveLower(wide, low01, low23), packed);
    put(hn::InterleaveUpper(wide, low01, low23), packed + width);
    put(hn::InterleaveLower(wide, high01, high23), packed + 2 * width);
    put(hn::InterleaveUpper(wide, high01, high23), packed + 3 * width);
}

// Words, each one f32 or two bf16: packed[word][16]. kStreams: past the caches.
template <bool kStreams>
HWY_INLINE void transpose(const Lines& lines, uint32_t* HWY_RESTRICT packed) {
    for (int64_t k = 0; k < kLineBytes / 4; k += 4)
        for (int64_t row = 0; row < kPanelColumns; row += 4) {
            BlockVector rows[4];
            for (int i = 0; i < 4; ++i) rows[i] = load_block(lines, row + i, k);
            transpose_4x4<kStreams>(rows, kPanelColumns, packed + k * kPanelColumns + row);
        }
}

// Four words of a row, in vectors of two blocks of row + 4 too.
#if !HWY_HAVE_SCALABLE && HWY_MAX_BYTES >= 32
using Rows = hn::FixedTag<uint32_t, 8>;
HWY_INLINE hn::Vec<Rows> load_rows(const Lines& lines, int64_t row, int64_t word) {
    return hn::Combine(Rows(), load_block(lines, row + 4, word), load_block(lines, row, word));
}
#else
using Rows = Block;
HWY_INLINE hn::Vec<Rows> load_rows(const Lines& lines, int64_t row, int64_t word) {
    return load_block(lines, row, word);
}
#endif

// Four words of a row, in vectors of up to four blocks of rows + 4, + 8 and + 12 too.
#if !HWY_HAVE_SCALABLE && HWY_MAX_BYTES >= 64
using Columns = hn::FixedTag<uint32_t, 16>;
HWY_INLINE hn::Vec<Columns> load_columns(const Lines& lines, int64_t row, int64_t word) {
    return hn::Combine(Columns(), load_rows(lines, row + 8, word), load_rows(lines, row, word));
}
#else
using Columns = Rows;
HWY_INLINE hn::Vec<Columns> load_columns(const Lines& lines, int64_t row, int64_t word) {
    return load_rows(lines, row, word);
}
#endif

// Codes of fp8 without their signs: the largest so far, which is a NaN if any is.
using Codes = hn::Repartition<uint8_t, Rows>;
using LargestCode = hn::Vec<Codes>;
HWY_INLINE LargestCode no_code() {
    return hn::Zero(Codes());
}
HWY_INLINE void keep_largest(hn::Vec<Rows> codes, LargestCode& largest) {
    const Codes d;
    largest = hn::Max(largest, hn::And(hn::BitCast(d, codes), hn::Set(d, 0x7fu)));
}
HWY_INLINE bool is_nan(LargestCode largest) {
    return !hn::AllFalse(Codes(), hn::Eq(largest, hn::Set(Codes(), 0x7fu)));
}

// Pairs of fp8: packed[k / 2][8] of (row i, row i + 8).
HWY_INLINE void transpose_pairs(const Lines& lines, uint32_t* HWY_RESTRICT packed,
                                LargestCode& largest) {
    const Rows d;
    const hn::Repartition<uint16_t, Rows> halves;
    const hn::RepartitionToWide<Rows> wide;
    constexpr int64_t kRows = static_cast<int64_t>(hn::MaxLanes(Rows()));
    // Four k of 4 rows (and of 4 more), from the pairs of (row i, row i + 8).
    const auto put_four = [&](const auto(&rows)[4], uint32_t* to) HWY_ATTR {
        const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, rows[0], rows[1]));
        const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, rows[2], rows[3]));
        const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, rows[0], rows[1]));
        const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, rows[2], rows[3]));
        hn::Stream(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, to);
        hn::Stream(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, to + 8);
        hn::Stream(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, to + 16);
        hn::Stream(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, to + 24);
    };
    for (int64_t word = 0; word < kLineBytes / 4; word += 4)
        for (int64_t row = 0; row < 8; row += kRows) {
            hn::Vec<Rows> low[4], high[4];  // pairs of k 0 to 3, of k 4 to 7
            for (int i = 0; i < 4; ++i) {
                const auto first = load_rows(lines, row + i, word);
                const auto second = load_rows(lines, row + i + 8, word);
                keep_largest(first, largest);
                keep_largest(second, largest);
                const auto a = hn::BitCast(halves, first), b = hn::BitCast(halves, second);
                low[i] = hn::BitCast(d, hn::InterleaveLower(halves, a, b));
                high[i] = hn::BitCast(d, hn::InterleaveUpper(halves, a, b));
            }
            put_four(low, packed + 2 * word * 8 + row);
            put_four(high, packed + (2 * word + 4) * 8 + row);
        }
}

#endif

// A unit out of 8 k of the lines from a word on. Returns whether any of the values is rare.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE bool compress_unit(const Lines& lines, int64_t word, const ExponentCodes& codes,
                              uint8_t* HWY_RESTRICT unit) {
    constexpr int64_t kHalf = kUnitValues / 2;
    std::fill_n(unit + kHalf, kHalf, uint8_t{0});
    bool any_rare = false;
    for (int64_t i = 0; i < kUnitValues; ++i) {
        const uint16_t value = value_of(lines, word, i);
        const uint8_t exponent = exponent_of(value);
        const int64_t half = i / kHalf, at = byte_of_value(i);
        unit[2 * half * kHalf + at] = static_cast<uint8_t>((value & 0x7fu) | (value >> 8 & 0x80u));
        int code = static_cast<uint8_t>(codes.first - exponent);
        if (is_rare(exponent, codes)) code = kRareCode;
        if (codes.zeros && exponent == 0) code = kZeroCode;
        unit[kHalf + at] |= static_cast<uint8_t>(code << 4 * half);
        any_rare |= code == kRareCode;
    }
    return any_rare;
}
#else
HWY_INLINE bool compress_unit(const Lines& lines, int64_t word, const ExponentCodes& codes,
                              uint8_t* HWY_RESTRICT unit) {
    const Columns d32;
    const hn::RepartitionToWide<Columns> d64;
    const hn::Repartition<uint16_t, Columns> d16;
    const hn::Repartition<uint8_t, Columns> d8;
    constexpr int64_t kBytes = static_cast<int64_t>(hn::MaxLanes(d8)), kHalf = kUnitValues / 2;
    alignas(16) constexpr uint8_t kEvenThenOdd[16] = {0, 2, 4, 6, 8, 10, 12, 14,
                                                      1, 3, 5, 7, 9, 11, 13, 15};
    const auto order = hn::LoadDup128(d8, kEvenThenOdd);
    const auto first = hn::Set(d8, codes.first), num = hn::Set(d8, codes.num);
    const auto rare = hn::Set(d8, static_cast<uint8_t>(kRareCode));
    const auto upper = hn::Set(d16, 0xff00u), lower = hn::Set(d16, 0xffu);
    auto largest = hn::Zero(d8);
    alignas(64) uint8_t staged[kUnitBytes];  // streams go line by line
    uint8_t* const to = kBytes == 64 ? unit : staged;
    const auto put = [&](auto bytes, int64_t offset) HWY_ATTR {
        if constexpr (kBytes == 64)
            hn::Stream(bytes, d8, to + offset);
        else
            hn::Store(bytes, d8, to + offset);
    };
    // Of 4 k, two pairs: writes the values' bytes, returns their codes.
    const auto split = [&](auto pairs, auto next_pairs, int64_t offset) HWY_ATTR {
        const auto a = hn::BitCast(d16, pairs), b = hn::BitCast(d16, next_pairs);
        const auto digits = hn::Or(hn::Or(hn::And(a, hn::Set(d16, 0x7fu)),
                                          hn::And(hn::ShiftRight<8>(a), hn::Set(d16, 0x80u))),
                                   hn::Or(hn::And(hn::ShiftLeft<8>(b), hn::Set(d16, 0x7f00u)),
                                          hn::And(b, hn::Set(d16, 0x8000u))));
        put(hn::TableLookupBytes(hn::BitCast(d8, digits), order), offset);
        const auto exponents = hn::BitCast(
            d8, hn::Or(hn::And(hn::ShiftRight<7>(a), lower), hn::And(hn::ShiftLeft<1>(b), upper)));
        auto code = hn::Min(hn::Sub(first, exponents), rare);
        code = hn::IfThenElse(hn::Eq(code, num), rare, code);
        if (codes.zeros)
            code = hn::IfThenElse(hn::Eq(exponents, hn::Zero(d8)),
                                  hn::Set(d8, static_cast<uint8_t>(kZeroCode)), code);
        largest = hn::Max(largest, code);
        return hn::TableLookupBytes(code, order);
    };
    for (int64_t row = 0; row < kPanelColumns; row += kBytes / 4) {
        const auto r0 = load_columns(lines, row, word), r1 = load_columns(lines, row + 1, word);
        const auto r2 = load_columns(lines, row + 2, word), r3 = load_columns(lines, row + 3, word);
        const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d32, r0, r1));
        const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d32, r2, r3));
        const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d32, r0, r1));
        const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d32, r2, r3));
        const int64_t offset = row * 4;
        const auto codes_low = split(hn::InterleaveLower(d64, low01, low23),
                                     hn::InterleaveUpper(d64, low01, low23), offset);
        const auto codes_high = split(hn::InterleaveLower(d64, high01, high23),
                                      hn::InterleaveUpper(d64, high01, high23), offset + 2 * kHalf);
        put(hn::Or(codes_low, hn::BitCast(d8, hn::ShiftLeft<4>(hn::BitCast(d16, codes_high)))),
            offset + kHalf);
    }
    if constexpr (kBytes < 64)
        for (int64_t i = 0; i < kUnitBytes; i += kBytes)
            hn::Stream(hn::Load(d8, to + i), d8, unit + i);
    return !hn::AllFalse(d8, hn::Eq(largest, rare));
}
#endif

// False if too many values are rare.
bool pack_compressed_panel(const PanelRows& rows, int64_t in, std::byte* panel) {
    const ExponentCodes codes = choose_codes(rows);
    const CompressedHead head = head_of(codes);
    std::memcpy(panel, &head, sizeof(head));
    auto* const list = const_cast<uint32_t*>(rare_values(panel, in));
    RareValues rare{list, list + rare_capacity(in) - 1};
    LinesCopy copy;
    auto* unit = reinterpret_cast<uint8_t*>(panel + sizeof(head));
    for (int64_t k = 0; k < in;) {
        const Lines lines = lines_at(rows, 2 * k, copy);
        for (int64_t word = 0; word < kLineBytes / 4 && k < in;
             word += kUnitSteps / 2, k += kUnitSteps, unit += kUnitBytes)
            if (compress_unit(lines, word, codes, unit))
                list_rare(lines, word, k, in, codes, unit, rare);
    }
    *rare.next = kNoRare;
    return rare.fits;
}

// Rows of int4 codes, two in a byte, and of their scales, of in / 32 each.
void pack_int4_panel(const PanelRows& rows, const uint16_t* scales, int64_t scales_stride,
                     int64_t in, std::byte* panel) {
    auto* to_scales = reinterpret_cast<uint16_t*>(panel);
    for (int64_t group = 0; group < in / kInt4Group; ++group, to_scales += kPanelColumns)
        for (int64_t row = 0; row < kPanelColumns; ++row)
            to_scales[row] = row < rows.num_rows ? scales[row * scales_stride + group] : 0;
    // Missing rows: scaled by zero, and never stored in y.
    uint32_t codes[kPanelColumns] = {}, unit_codes[kPanelColumns];
    std::byte* unit = panel + int4_scales_bytes(in);
    for (int64_t offset = 0; offset < rows.row_bytes; offset += 4, unit += kInt4UnitBytes) {
        for (int64_t row = 0; row < rows.num_rows; ++row)
            std::memcpy(&codes[row], rows.data + row * rows.stride_bytes + offset, 4);
        for (int64_t row = 0; row < kPanelColumns; ++row) {
            // Codes of k 0, 2, 4, 6 and of k 1, 3, 5, 7; then bytes of (0, 4), (2, 6) and of
            // (1, 5), (3, 7); then all four in order.
            const uint32_t even = codes[row] & 0x0f0f0f0fu, odd = codes[row] >> 4 & 0x0f0f0f0fu;
            const uint32_t evens = even | even >> 12, odds = odd | odd >> 12;
            unit_codes[row] = (evens & 0xffu) | (odds & 0xffu) << 8 | (evens & 0xff00u) << 8 |
                              (odds & 0xff00u) << 16;
        }
        std::memcpy(unit, unit_codes, sizeof(unit_codes));
    }
}

// `packed_row_bytes` * 16 bytes of a panel. False if a value is not one that panels can hold.
template <DType kType>
HWY_INLINE bool pack_lines(const PanelRows& rows, int64_t packed_row_bytes, std::byte* packed) {
    LinesCopy copy;
    LargestCode largest = no_code();
    const auto put = [&](int64_t offset, uint32_t* to) HWY_ATTR {
        const Lines lines = lines_at(rows, offset, copy);
        if constexpr (kType == DType::fp8_e4m3)
            transpose_pairs(lines, to, largest);
        else
            transpose<true>(lines, to);
    };
    int64_t offset = 0;
    for (; offset + kLineBytes <= packed_row_bytes; offset += kLineBytes)
        put(offset, reinterpret_cast<uint32_t*>(packed + offset * kPanelColumns));
    if (offset < packed_row_bytes) {
        alignas(64) uint32_t last[kPanelColumns * kLineBytes / 4];
        put(offset, last);
        std::memcpy(packed + offset * kPanelColumns, last,
                    static_cast<size_t>((packed_row_bytes - offset) * kPanelColumns));
    }
    return !is_nan(largest);
}

bool pack_panel(DType dtype, const PanelRows& rows, int64_t packed_row_bytes, std::byte* packed) {
    switch (dtype) {
        case DType::f32:
            return pack_lines<DType::f32>(rows, packed_row_bytes, packed);
        case DType::bf16:
            return pack_lines<DType::bf16>(rows, packed_row_bytes, packed);
        default:
            return pack_lines<DType::fp8_e4m3>(rows, packed_row_bytes, packed);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(pack_panel);
HWY_EXPORT(pack_compressed_panel);
HWY_EXPORT(pack_int4_panel);

[[noreturn]] void refuse_nan(const Tensor& w, int64_t first_out) {
    for (int64_t row = 0; row < w.rows(); ++row)
        for (int64_t k = 0; k < w.dim(1); ++k)
            if ((w.row<uint8_t>(row)[k] & 0x7fu) == 0x7fu)
                throw Error(ErrorKind::checkpoint,
                            "an fp8 weight is not a number at [{}, {}]; the checkpoint is damaged "
                            "or was quantised badly",
                            first_out + row, k);
    check_failed(__FILE__, __LINE__, "a NaN in w", "none was found again");
}

void check_int4_scales(const Tensor& scales, int64_t first_out) {
    for (int64_t row = 0; row < scales.rows(); ++row)
        for (int64_t group = 0; group < scales.dim(1); ++group)
            if ((scales.row<uint16_t>(row)[group] & 0x7f80u) == 0x7f80u)
                throw Error(ErrorKind::checkpoint,
                            "the scale of int4 weights is not a finite number at [{}, {}]; the "
                            "checkpoint is damaged or was quantised badly",
                            first_out + row, group);
}

[[noreturn]] void refuse_to_compress(int64_t first_out) {
    throw Error(ErrorKind::checkpoint,
                "the weights of outputs {} and on do not compress: more than one in {} has an "
                "exponent far from the others'; set engine.compress_weights: false",
                first_out, kRareShare);
}

// The bf16 value of a compressed panel at (column, k).
uint16_t compressed_value(const std::byte* panel, int64_t in, int64_t column, int64_t k) {
    const auto& head = *reinterpret_cast<const CompressedHead*>(panel);
    const int64_t i = k % kUnitSteps / 2 * 32 + column * 2 + k % 2;
    const auto* unit =
        reinterpret_cast<const uint8_t*>(compressed_units(panel) + k / kUnitSteps * kUnitBytes);
    const bool second = i >= kUnitValues / 2;
    const uint8_t byte = unit[byte_of_value(i) + (second ? kUnitValues : 0)];
    const int code = unit[kUnitValues / 2 + byte_of_value(i)] >> (second ? 4 : 0) & 15;
    auto value = static_cast<uint16_t>(((byte & 0x80u) | head.upper[code]) << 8 | (byte & 0x7fu) |
                                       head.lower[code]);
    if (code == kRareCode)
        for (const uint32_t* rare = rare_values(panel, in); *rare != kNoRare; ++rare)
            if (rare_place(*rare) == k / kUnitSteps * kUnitValues + i) value |= rare_bits(*rare);
    return value;
}

// The value of an int4 panel at (column, k).
float int4_panel_value(const std::byte* panel, int64_t in, int64_t column, int64_t k) {
    const int64_t i = k % kUnitSteps / 2 * 32 + column * 2 + k % 2;
    const std::byte* unit = int4_units(panel, in) + k / kUnitSteps * kInt4UnitBytes;
    const uint16_t scale = int4_scales(panel)[k / kInt4Group * kPanelColumns + column];
    return static_cast<float>(
               int4_value(static_cast<uint8_t>(unit[byte_of_code(i)]), i / kInt4UnitBytes)) *
           bf16_to_f32(scale);
}

// The value of a packed panel at (column, k).
float unpack_value(DType dtype, const std::byte* panel, int64_t column, int64_t k) {
    const int64_t word = column % 8, half = column / 8;
    switch (dtype) {
        case DType::f32:
            return reinterpret_cast<const float*>(panel)[k * kPanelColumns + column];
        case DType::bf16:
            return bf16_to_f32(reinterpret_cast<const uint16_t*>(
                panel)[(k / 2 * kPanelColumns + column) * 2 + k % 2]);
        default:
            return fp8_e4m3_to_f32(reinterpret_cast<const uint8_t*>(
                panel)[((k / 2 * 8 + word) * 2 + half) * 2 + k % 2]);
    }
}

}  // namespace

int64_t CpuKernels::bytes_of_panel(const WeightSpec& spec) const {
    if (spec.dtype == DType::int4x2) return int4_panel_bytes(spec.in);
    return compresses(spec) ? compressed_panel_bytes(spec.in) : panel_bytes(spec.dtype, spec.in);
}

int64_t CpuKernels::packed_bytes(const WeightSpec& spec) const {
    return spec.groups * ceil_div(spec.out, kPanelColumns) * bytes_of_panel(spec);
}

// Memory of weights. Small ones share blocks, so that they lie in huge pages too; a block goes with
// the last weight in it, and what nobody touches of it takes no memory.
Buffer CpuKernels::take_memory(size_t num_bytes) {
    constexpr size_t kSharedBelowBytes = size_t{2} << 20, kBlockBytes = size_t{16} << 20;
    if (num_bytes >= kSharedBelowBytes) return {device(), num_bytes};
    if (block_ == nullptr || block_used_ + num_bytes > block_->size_bytes()) {
        block_ = std::make_shared<Buffer>(device(), kBlockBytes);
        block_used_ = 0;
    }
    std::byte* data = block_->as<std::byte>() + block_used_;
    block_used_ += static_cast<size_t>(ceil_div(static_cast<int64_t>(num_bytes), kLineBytes)) *
                   static_cast<size_t>(kLineBytes);
    return Buffer::adopt(data, num_bytes, [block = block_] {});
}

Weight CpuKernels::make_weight(const WeightSpec& spec) {
    Weight weight{
        .spec = spec, .data = take_memory(static_cast<size_t>(packed_bytes(spec))), .scales = {}};
    if (spec.dtype == DType::fp8_e4m3)
        weight.scales = take_memory(static_cast<size_t>(
            4 * spec.groups * ceil_div(spec.out, kScaleBlock) * ceil_div(spec.in, kScaleBlock)));
    return weight;
}

void CpuKernels::pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                      const Tensor* scales) {
    const WeightSpec& spec = weight.spec;
    const bool is_int4 = spec.dtype == DType::int4x2;
    check_shape(w, "w", spec.dtype, {w.rows(), is_int4 ? spec.in / 2 : spec.in});
    if (is_int4) {
        FERRY_CHECK(spec.in % kInt4Group == 0 && scales != nullptr, "int4 weights of {} inputs",
                    spec.in);
        check_shape(*scales, "scales", DType::bf16, {w.rows(), spec.in / kInt4Group});
        check_int4_scales(*scales, first_out);
    }
    FERRY_CHECK(group >= 0 && group < spec.groups && first_out % kScaleBlock == 0 &&
                    first_out + w.rows() <= spec.out &&
                    (w.rows() % kScaleBlock == 0 || first_out + w.rows() == spec.out),
                "rows {}+{} of group {} into {} groups of {}", first_out, w.rows(), group,
                spec.groups, spec.out);
    const int64_t bytes = bytes_of_panel(spec);
    const int64_t element = size_bytes(spec.dtype);
    std::byte* panel = weight.group_data(group) + first_out / kPanelColumns * bytes;
    for (int64_t row = 0; row < w.rows(); row += kPanelColumns, panel += bytes) {
        const PanelRows rows{.data = w.row<const std::byte>(row),
                             .stride_bytes = w.row_stride() * element,
                             .row_bytes = w.dim(1) * element,
                             .num_rows = std::min(kPanelColumns, w.rows() - row)};
        if (is_int4) {
            HWY_DYNAMIC_DISPATCH(pack_int4_panel)
            (rows, scales->row<uint16_t>(row), scales->row_stride(), spec.in, panel);
        } else if (compresses(spec)) {
            if (HWY_DYNAMIC_DISPATCH(pack_compressed_panel)(rows, spec.in, panel)) continue;
            if (options_.incompressible == nullptr) refuse_to_compress(first_out + row);
            options_.incompressible->store(true, std::memory_order_relaxed);
        } else if (!HWY_DYNAMIC_DISPATCH(pack_panel)(spec.dtype, rows, bytes / kPanelColumns,
                                                     panel)) {
            refuse_nan(w, first_out);
        }
    }
    // Before another thread is told that the panels are there. It waits for memory: after each
    // panel, it would cost a quarter of the time of panels of 8 KiB.
    hwy::FlushStream();
    if (spec.dtype != DType::fp8_e4m3) return;
    FERRY_CHECK(scales != nullptr, "fp8 weights without scales");
    const int64_t blocks = ceil_div(spec.in, kScaleBlock);
    check_shape(*scales, "scales", DType::f32, {ceil_div(w.rows(), kScaleBlock), blocks});
    float* to = weight.group_scales(group) + first_out / kScaleBlock * blocks;
    for (int64_t row = 0; row < scales->rows(); ++row)
        std::copy_n(scales->row<float>(row), blocks, to + row * blocks);
}

void CpuKernels::unpack(const Weight& weight, int64_t group, const Tensor& w_f32) {
    const WeightSpec& spec = weight.spec;
    check_shape(w_f32, "w_f32", DType::f32, {spec.out, spec.in});
    const int64_t bytes = bytes_of_panel(spec);
    const int64_t blocks = ceil_div(spec.in, kScaleBlock);
    for (int64_t out = 0; out < spec.out; ++out) {
        const std::byte* panel = weight.group_data(group) + out / kPanelColumns * bytes;
        const float* scales = weight.group_scales(group) + out / kScaleBlock * blocks;
        for (int64_t k = 0; k < spec.in; ++k) {
            const int64_t column = out % kPanelColumns;
            if (spec.dtype == DType::int4x2) {
                w_f32.row<float>(out)[k] = int4_panel_value(panel, spec.in, column, k);
                continue;
            }
            const float value = compresses(spec)
                                    ? bf16_to_f32(compressed_value(panel, spec.in, column, k))
                                    : unpack_value(spec.dtype, panel, column, k);
            w_f32.row<float>(out)[k] =
                spec.dtype == DType::fp8_e4m3 ? value * scales[k / kScaleBlock] : value;
        }
    }
}

}  // namespace ferry
#endif  // HWY_ONCE
