// Made-up sequences for attention tests: values of order 1, every position different.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <vector>

#include "base/random.h"
#include "layers/kernels.h"

namespace ferry {

inline OwnedTensor random_tensor(std::initializer_list<int64_t> shape, uint64_t seed,
                                 DType dtype = DType::f32) {
    OwnedTensor tensor(cpu_device(), dtype, shape);
    Random random(seed);
    for (int64_t i = 0; i < tensor.view().count(); ++i) {
        const float value = random.next_normal();
        if (dtype == DType::f32)
            tensor.view().as<float>()[i] = value;
        else
            tensor.view().as<uint16_t>()[i] = f32_to_bf16(value);
    }
    return tensor;
}

inline OwnedTensor zeros(std::initializer_list<int64_t> shape) {
    return OwnedTensor(cpu_device(), DType::f32, shape);
}

// Rows of both with different bits.
inline std::vector<int64_t> different_rows(const Tensor& a, const Tensor& b) {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < a.rows(); ++row)
        if (std::memcmp(a.row<float>(row), b.row<float>(row),
                        static_cast<size_t>(a.row_size()) * sizeof(float)) != 0)
            rows.push_back(row);
    return rows;
}

inline float largest_difference(const Tensor& a, const Tensor& b) {
    float largest = 0;
    for (int64_t i = 0; i < a.count(); ++i)
        largest = std::max(largest, std::abs(a.as<float>()[i] - b.as<float>()[i]));
    return largest;
}

}  // namespace ferry
