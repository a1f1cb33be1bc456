// One tensor from the type it is stored in to the type it shall have, a few rows at a time.
#pragma once
#include <functional>

#include "runtime/stored_tensor.h"

namespace ferry {

// Where converted bytes go: in order, without gaps, once for the tensor and once for its scales.
struct RequantiseSink {
    std::function<void(const void* data, size_t num_bytes)> weight;
    std::function<void(const void* data, size_t num_bytes)> scales;  // of types that have them
};

// Rows [first_row, first_row + num_rows) of dimension 0 of `tensor` as `dtype`. `scales` belong to
// a tensor of fp8 or int4. To bf16 and fp8 values are rounded to nearest even; fp8 blocks of
// 128x128 are scaled by their largest magnitude / 448 (1 for a block of zeros). int4 groups of 32
// are scaled by a bf16 of the value of largest magnitude / -8, so that it is the one code without a
// counterpart (as llama.cpp's Q4_0), and rounded to nearest even. Equal types are copied as they
// are. Needs a few times 8 MiB of memory.
void requantise(const StoredTensor& tensor, const StoredTensor* scales, int64_t first_row,
                int64_t num_rows, DType dtype, const RequantiseSink& sink);

}  // namespace ferry
