// The order of packed weights on the CPU.
//
// A matrix [out, in] is cut into panels of 16 output columns, each contiguous and ordered by k, so
// that a product reads it as one stream; the last panel is filled up with zeros. In a panel:
//   f32:  [k][16]
//   bf16: [k][8] words of 32 bits, word i = (column i, column i + 8), low half first: two columns
//         are widened by one shift and one mask
//   fp8:  [k / 2][8] words, word i = (column i: k, k + 1; column i + 8: k, k + 1), low byte first;
//         an odd last k is filled up with a zero. It is bf16's order of pairs of values.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace ferry {

constexpr int64_t kPanelColumns = 16;

constexpr int64_t panel_bytes(DType dtype, int64_t in) {
    return kPanelColumns * size_bytes(dtype) * (dtype == DType::fp8_e4m3 ? (in + 1) / 2 * 2 : in);
}

}  // namespace ferry
