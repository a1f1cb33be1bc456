// A tensor as it lies in files: rows of dimension 0 in contiguous parts, read box by box.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "layers/weight_source.h"
#include "runtime/input_file.h"

namespace ferry {

struct StoredPart {
    int64_t first_row = 0;
    int64_t num_rows = 0;
    const InputFile* file = nullptr;
    int64_t offset_bytes = 0;
};

struct StoredTensor {
    TensorInfo info;
    std::vector<StoredPart> parts;  // by first_row, without gaps, all of dimension 0
    // Files have one element where so many of a row follow each other and are alike; divides the
    // last extent.
    int64_t repeat = 1;
};

// Elements of a shape, or nothing when an extent is negative or the bytes do not fit in 2^62.
std::optional<int64_t> checked_count(std::span<const int64_t> shape);
int64_t size_bytes(const TensorInfo& info);

// The box `ranges` (one per dimension, inside the shape) as contiguous row-major elements in `dst`.
// Near runs are fetched by one read. Thread-safe. Throws Error(checkpoint).
void read_box(const StoredTensor& tensor, std::span<const Range> ranges, void* dst);

// Every dimension from end to end.
std::vector<Range> whole_box(std::span<const int64_t> shape);

}  // namespace ferry
