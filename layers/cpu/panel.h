// The order of packed weights on the CPU.
//
// A matrix [out, in] is cut into panels of 16 output columns, each contiguous and ordered by k, so
// that a product reads it as one stream; the last panel is filled up with zeros. In a panel:
//   f32:  [k][16]
//   bf16: [k / 2][16] words of 32 bits, word i = (column i: k, k + 1), low half first: what
//         vdpbf16ps takes, and two k are widened by one shift and one mask
//   fp8:  [k / 2][8] words, word i = (column i: k, k + 1; column i + 8: k, k + 1), low byte first
// Of bf16 and fp8 an odd last k is filled up with a zero.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace ferry {

constexpr int64_t kPanelColumns = 16;

constexpr int64_t panel_bytes(DType dtype, int64_t in) {
    return kPanelColumns * size_bytes(dtype) * (dtype == DType::f32 ? in : (in + 1) / 2 * 2);
}

}  // namespace ferry
