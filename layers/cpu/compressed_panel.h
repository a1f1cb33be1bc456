// The order of bf16 weights that are held in 12.25 bits a value instead of 16, without loss.
//
// A sign and the digits of a bf16 value are 8 bits that say little about each other; its exponent,
// 8 bits too, is one of very few: 15 neighbouring ones hold all but about one in 4000 of normally
// distributed values. So a panel (panel.h) has a byte of sign and digits and half a byte that
// stands for the exponent of each value, and a list of the few exponents that have no code. What is
// read back are panel.h's words of bf16, bit for bit. (Others who use that exponents say little:
// DFloat11, https://arxiv.org/abs/2504.11651, which saves more and takes longer to read.)
//
// A panel:
//   CompressedHead
//   [ceil(in / 8)] units of 8 k: bytes of k 0 to 3 [64], codes [64], bytes of k 4 to 7 [64]. The
//       i-th byte of codes has the code of the i-th of the first bytes in its low half, of the
//       second in its high half. Of 4 k, [16 / 4] lanes of 16 bytes hold 4 columns each: (column,
//       k 0), (column, k 1), ... of all four, then of k 2 and k 3. Bytes of exponents and of the
//       rest, interleaved in lanes of 128 bits, are the words of pairs of k in order.
//   [rare_capacity(in)] uint32: of values whose code is kRareCode, in order, which of the panel's
//       values in panel.h's order (upper 24 bits) and its exponent; ended by kNoRare.
#pragma once
#include <cstddef>
#include <cstdint>

#include "layers/cpu/panel.h"

namespace ferry {

constexpr int64_t kUnitSteps = 8;                              // values of k of a unit
constexpr int64_t kUnitValues = kUnitSteps * kPanelColumns;    // 128
constexpr int64_t kUnitBytes = kUnitValues + kUnitValues / 2;  // 192
constexpr int64_t kRareShare = 128;                            // one of so many may be rare
constexpr uint32_t kNoRare = 0xffffffffu;
constexpr int kRareCode = 15;

// Bytes that a code's exponent puts into the upper and into the lower half of a bf16 value.
struct CompressedHead {
    uint8_t upper[16];
    uint8_t lower[16];
    uint8_t unused[32];
};

constexpr int64_t num_units(int64_t in) {
    return (in + kUnitSteps - 1) / kUnitSteps;
}
constexpr int64_t rare_capacity(int64_t in) {  // whole lines of memory
    constexpr int64_t kOfLine = 16;
    return (in * kPanelColumns / kRareShare + kOfLine) / kOfLine * kOfLine;
}
constexpr int64_t compressed_panel_bytes(int64_t in) {
    return static_cast<int64_t>(sizeof(CompressedHead)) + num_units(in) * kUnitBytes +
           4 * rare_capacity(in);
}
inline const std::byte* compressed_units(const std::byte* panel) {
    return panel + sizeof(CompressedHead);
}
inline const uint32_t* rare_values(const std::byte* panel, int64_t in) {
    return reinterpret_cast<const uint32_t*>(compressed_units(panel) + num_units(in) * kUnitBytes);
}
constexpr int64_t rare_place(uint32_t rare) {
    return rare >> 8;
}
// What is or-ed to the value at that place.
constexpr uint16_t rare_bits(uint32_t rare) {
    return static_cast<uint16_t>((rare & 0xffu) << 7);
}

// Where the byte of value i of a unit, in panel.h's order, lies in the unit's first or second 64.
constexpr int64_t byte_of_value(int64_t i) {
    return i % 32 / 8 * 16 + i % 64 / 32 * 8 + i % 8;
}

}  // namespace ferry
