// Rows where they arrived, in the form in which they travel: nobody has copied them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace ferry {

// decode_row (comm/row_codec.h) makes f32 of it.
struct WireRow {
    const std::byte* values = nullptr;  // [dim] of WireRows::dtype
    const float* scales = nullptr;      // fp8 only: [ceil(dim / 128)]
};

struct WireRows {
    DType dtype = DType::f32;  // f32, bf16 or fp8_e4m3
    int64_t dim = 0;
    std::span<const WireRow> rows{};

    int64_t count() const { return static_cast<int64_t>(rows.size()); }
};

}  // namespace ferry
