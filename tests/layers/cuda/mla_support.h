// Tests of the attention kernels: errors that bf16 operands may make, and sizes that suit where the
// tests run.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/layers/cpu/attention_support.h"
#include "tests/support/cuda_matrix.h"

namespace ferry {

// Whether kernels really run on a GPU, where sizes may be large.
inline bool on_gpu() {
    return cuda_device(0).info().name.find("emulat") == std::string::npos;
}

inline std::vector<float> values_of(const Tensor& host) {
    return {host.as<float>(), host.as<float>() + host.count()};
}

// ||got - expected|| / ||expected||; NaN when there is one in `got`.
inline double relative_error(const std::vector<float>& got, const std::vector<float>& expected) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double difference = static_cast<double>(got[i]) - expected[i];
        error += difference * difference;
        norm += static_cast<double>(expected[i]) * expected[i];
    }
    return std::sqrt(error / std::max(norm, 1e-30));
}

// Queries, keys, values and probabilities are rounded to bf16, each by at most 2^-9 of itself and
// in either direction, sums are f32: the terms of a result are within about 2^-8, their errors
// independent. A key too many or too few among n makes an error of about n^-1/2.
constexpr double kBf16Error = 1.0 / 256;
// Other orders of f32 sums and another exp.
constexpr double kF32Error = 1e-6;
// Exact products summed on tensor cores: those of a GPU cut off what lies below some 2^-23 of the
// largest term, at every step.
constexpr double kTensorCoreError = 1e-5;

}  // namespace ferry
