// What a panel (panel.h) is packed from: 16 rows of weights, read a line of 64 bytes of each at a
// time.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layers/cpu/panel.h"

namespace ferry {

constexpr int64_t kLineBytes = 64;

// What one panel is made of: rows [0, num_rows) of `row_bytes` each; missing ones are zeros.
struct PanelRows {
    const std::byte* data;
    int64_t stride_bytes;
    int64_t row_bytes;
    int64_t num_rows;
};

// One line of each of the 16 rows: where they lie, or a copy with zeros for what is missing.
struct Lines {
    const std::byte* data;
    int64_t stride_bytes;
};

struct LinesCopy {
    alignas(64) std::byte lines[kPanelColumns][kLineBytes];
};

inline Lines lines_at(const PanelRows& rows, int64_t offset, LinesCopy& copy) {
    const int64_t bytes = std::min(kLineBytes, rows.row_bytes - offset);
    if (bytes == kLineBytes && rows.num_rows == kPanelColumns)
        return {rows.data + offset, rows.stride_bytes};
    copy = {};
    for (int64_t row = 0; row < rows.num_rows; ++row)
        std::memcpy(copy.lines[row], rows.data + row * rows.stride_bytes + offset,
                    static_cast<size_t>(bytes));
    return {copy.lines[0], kLineBytes};
}

}  // namespace ferry
