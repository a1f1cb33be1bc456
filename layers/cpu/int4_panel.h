// The order of int4 weights on the CPU: 4.5 bits a value, scales included.
//
// A panel (panel.h; in is a multiple of 32):
//   scales [in / 32][16] bf16, of a group of 32 k and a column; filled up to whole lines of 64
//       bytes
//   units [in / 8] of 64 bytes, of 8 k: four bytes for each column, which have the codes of k 0 to
//       3 in their low halves and of k 4 to 7 in their high halves. A code is the value plus 8.
//
// Rows of f32 or bf16: codes become the bf16 of -8 to 7, which is exact. A product sums a group of
// 32 k, then scales the sum: y = fma(group sum, scale, y), group after group (as fp8, whose blocks
// are of 128 k). Rows of int8 (CpuOptions::int8_activations): gemm_int8.cpp.
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
// Where the code of value i of a unit lies, in panel.h's order of bf16.
constexpr int64_t byte_of_code(int64_t i) {
    return i % 32 / 2 * 4 + i % (kUnitValues / 2) / 32 * 2 + i % 2;
}
inline const std::byte* int4_units(const std::byte* panel, int64_t in) {
    return panel + int4_scales_bytes(in);
}
inline const uint16_t* int4_scales(const std::byte* panel) {
    return reinterpret_cast<const uint16_t*>(panel);
}

}  // namespace ferry
