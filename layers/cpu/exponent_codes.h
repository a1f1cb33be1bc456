// Which exponents of a panel's bf16 weights have codes when it is compressed (compressed_panel.h),
// and the list of values whose exponent has none.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "layers/cpu/compressed_panel.h"
#include "layers/cpu/panel_rows.h"

namespace ferry {

// Which exponents of a compressed panel have codes: `num` neighbouring ones from `first` downwards,
// and 0 where there are many zeros.
struct ExponentCodes {
    uint8_t first, num;
    bool zeros;
};

constexpr int kZeroCode = kRareCode - 1;

inline uint8_t exponent_of(uint16_t value) {
    return static_cast<uint8_t>(value >> 7);
}

// Those that most of some of the panel's values have.
inline ExponentCodes choose_codes(const PanelRows& rows) {
    constexpr int64_t kMany = 1024;  // values of a row
    constexpr int kTables = 4;       // in turn: most values count for the same few exponents
    const int64_t in = rows.row_bytes / 2, step = in < kMany ? 1 : 8;
    int32_t tables[kTables][256] = {}, all = 0;
    for (int64_t row = 0; row < rows.num_rows; ++row) {
        const auto* values = reinterpret_cast<const uint16_t*>(rows.data + row * rows.stride_bytes);
        int64_t k = row % step;
        for (; k + (kTables - 1) * step < in; all += kTables)
            for (auto& table : tables) {
                ++table[exponent_of(values[k])];
                k += step;
            }
        for (; k < in; k += step, ++all) ++tables[0][exponent_of(values[k])];
    }
    int32_t counts[256];
    for (int exponent = 0; exponent < 256; ++exponent)
        counts[exponent] =
            tables[0][exponent] + tables[1][exponent] + tables[2][exponent] + tables[3][exponent];
    constexpr int32_t kFewZeros = 4096;  // one of so many values
    const bool zeros = rows.num_rows < kPanelColumns || int64_t{counts[0]} * kFewZeros > all;
    const int num = zeros ? kZeroCode : kRareCode;
    int first = 255, best = -1, sum = 0;
    for (int last = 255, exponent = 255; exponent >= 0; --exponent) {
        sum += counts[exponent];
        if (last - exponent == num) sum -= counts[last--];
        if (sum >= best) {
            best = sum;
            first = last;
        }
    }
    // Windows were whole but for the first ones, which hold less: first >= num - 1.
    return {static_cast<uint8_t>(std::max(first, num - 1)), static_cast<uint8_t>(num), zeros};
}

inline bool is_rare(uint8_t exponent, const ExponentCodes& codes) {
    return static_cast<uint8_t>(codes.first - exponent) >= codes.num &&
           !(codes.zeros && exponent == 0);
}

inline CompressedHead head_of(const ExponentCodes& codes) {
    CompressedHead head{};
    for (int code = 0; code < codes.num; ++code) {
        const int exponent = codes.first - code;  // not below 0: choose_codes
        head.upper[code] = static_cast<uint8_t>(exponent >> 1);
        head.lower[code] = static_cast<uint8_t>(exponent << 7);
    }
    return head;
}

// The list of a panel's rare values.
struct RareValues {
    uint32_t* next;
    uint32_t* end;  // of what there is room for, but for kNoRare
    bool fits = true;

    void add(int64_t place, uint8_t exponent) {
        if (next == end) {
            fits = false;
            return;
        }
        *next++ = static_cast<uint32_t>(place << 8) | exponent;
    }
};

// The i-th of the 128 values of 8 k from a word on, in panel.h's order.
inline uint16_t value_of(const Lines& lines, int64_t word, int64_t i) {
    uint16_t value;
    std::memcpy(&value,
                lines.data + i % 32 / 2 * lines.stride_bytes + word * 4 + (i / 32 * 2 + i % 2) * 2,
                sizeof(value));
    return value;
}

// Lists the rare values of a unit of k from `first_k`. Those beyond the last k need no entry: any
// other code will do.
inline void list_rare(const Lines& lines, int64_t word, int64_t first_k, int64_t in,
                      const ExponentCodes& codes, uint8_t* unit, RareValues& rare) {
    for (int64_t i = 0; i < kUnitValues; ++i) {
        const uint8_t exponent = exponent_of(value_of(lines, word, i));
        if (!is_rare(exponent, codes)) continue;
        constexpr int64_t kHalf = kUnitValues / 2;
        if (first_k + i / 32 * 2 + i % 2 < in)
            rare.add(first_k * kPanelColumns + i, exponent);
        else
            unit[kHalf + byte_of_value(i)] &= static_cast<uint8_t>(0xf0u >> i / kHalf * 4);
    }
}

}  // namespace ferry
