// A matrix of f32 for tests: random, or NaN until somebody writes it.
#pragma once
#include <bit>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "base/tensor.h"

namespace ferry {

struct Matrix {
    // seed 0: NaN
    Matrix(int64_t rows, int64_t columns, uint64_t seed = 0)
        : values(static_cast<size_t>(rows * columns), std::nanf("")),
          view(values.data(), DType::f32, {rows, columns}) {
        if (seed == 0) return;
        Random numbers(seed);
        for (float& value : values) value = numbers.next_normal();
    }
    Matrix(const Matrix&) = delete;

    std::vector<float> values;
    Tensor view;
};

// Elements of which the bits differ.
inline int64_t num_different(const Matrix& a, const Matrix& b) {
    int64_t count = a.values.size() == b.values.size() ? 0 : 1;
    for (size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i)
        count += std::bit_cast<uint32_t>(a.values[i]) != std::bit_cast<uint32_t>(b.values[i]);
    return count;
}

}  // namespace ferry
