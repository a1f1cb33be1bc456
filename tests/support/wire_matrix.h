// Rows as the exchange brings them to the experts: encoded, apart from each other.
#pragma once
#include <cstddef>
#include <vector>

#include "comm/row_codec.h"
#include "comm/wire.h"
#include "comm/wire_rows.h"
#include "tests/support/matrix.h"

namespace ferry {

struct WireMatrix {
    WireMatrix(DType dtype, const Matrix& x)
        : decoded(x.view.rows(), x.view.row_size()),
          values(static_cast<size_t>(x.view.rows() * wire_row_bytes(dtype, x.view.row_size()))),
          scales(static_cast<size_t>(x.view.rows() * wire_row_scales(dtype, x.view.row_size()))),
          list(static_cast<size_t>(x.view.rows())),
          rows{dtype, x.view.row_size(), list} {
        const int64_t count = x.view.rows(), dim = x.view.row_size();
        for (int64_t r = 0; r < count; ++r) {
            const int64_t at = count % 37 == 0 ? r : r * 37 % count;  // where it lies
            std::byte* row = values.data() + at * wire_row_bytes(dtype, dim);
            float* row_scales = scales.data() + at * wire_row_scales(dtype, dim);
            encode_row(dtype, x.view.row<float>(r), dim, row, row_scales);
            decode_row(dtype, row, row_scales, dim, decoded.view.row<float>(r));
            list[static_cast<size_t>(r)] = {row, row_scales};
        }
    }
    WireMatrix(const WireMatrix&) = delete;

    Matrix decoded;  // what the rows say
    std::vector<std::byte> values;
    std::vector<float> scales;
    std::vector<WireRow> list;
    WireRows rows;
};

}  // namespace ferry
