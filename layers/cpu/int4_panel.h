// The order of int4 weights on the CPU: 4.5 bits a value, scales included.
//
// A panel (panel.h; in is a multiple of 32):
//   scales [in / 32][16] bf16, of a group of 32 k and a column; filled up to whole lines of 64
//   bytes units [in / 8] of 64 bytes, of 8 k. Byte i has the code of k 0 to 3 in its low half and
//   of
//       k 4 to 7 in its high half, in the order of a compressed unit's codes
//       (compressed_panel.h: byte_of_value()). A code is the value plus 8.
// Codes become the bf16 of -8 to 7, which is exact. A product sums a group of 32 k, then scales the
// sum: y = fma(group sum, scale, y), group after group (as fp8, whose blocks are of 128 k).
#pragma once
#include "layers/cpu/compressed_panel.h"
#include "layers/kernels.h"

namespace ferry {

constexpr int64_t kInt4UnitBytes = kUnitValues / 2;
constexpr int64_t kInt4UnitsOfGroup = kInt4Group / kUnitSteps;

constexpr int64_t int4_scales_bytes(int64_t in) {
    constexpr int64_t kLine = 64;
    return (in / kInt4Group * kPanelColumns * 2 + kLine - 1) / kLine * kLine;
}
constexpr int64_t int4_panel_bytes(int64_t in) {
    return int4_scales_bytes(in) + in / kUnitSteps * kInt4UnitBytes;
}
inline const std::byte* int4_units(const std::byte* panel, int64_t in) {
    return panel + int4_scales_bytes(in);
}
inline const uint16_t* int4_scales(const std::byte* panel) {
    return reinterpret_cast<const uint16_t*>(panel);
}

}  // namespace ferry
