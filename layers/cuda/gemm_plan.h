// A matrix product as cuBLASLt is asked for it: what it is (GemmShape), how it will be done
// (GemmPlan), both plain values that print themselves.
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>

namespace ferry {

// y[b][m, out] = x[b][m, in] W[b]^T for b < batch, all row-major; sums are f32.
struct GemmShape {
    enum class Inputs : uint8_t {
        f32,       // no TF32
        bf16,      // x and W
        bf16_fp8,  // x bf16, W e4m3 scaled by 128 x 128: own kernel only
        fp8,       // e4m3; x scaled by 1 x 128, W by 128 x 128 (scales of x: [ceil(in/128)][m])
    };
    Inputs inputs = Inputs::bf16;
    bool bf16_result = false;  // y: bf16, rounded from the sum; else f32
    int64_t rows = 0, out = 0, in = 0;
    int64_t x_stride = 0, w_stride = 0, y_stride = 0;  // elements from row to row
    int64_t batch = 1;
    int64_t x_batch_stride = 0, w_batch_stride = 0, y_batch_stride = 0;  // elements
    int64_t alignment = 16;  // bytes that x, W and y are multiples of: 16 or 4

    int64_t result_bytes() const { return bf16_result ? 2 : 4; }

    auto operator<=>(const GemmShape&) const = default;
    std::string describe() const;  // "bf16 [8 x 7168] x [2048 x 7168]"
};

// Rows that an fp8 product of cuBLASLt has a multiple of, and columns of y.
constexpr int64_t kFp8Multiple = 4;

// Whether cuBLASLt's rules for block-scaled fp8 allow a shape (its manual, "128-element 1D and
// 128x128 2D Block Scaling"): rows and out are multiples of 4, everything begins on 16 bytes. The
// library is not asked for others.
bool fp8_rules_allow(const GemmShape& shape);

struct GemmPlan {
    GemmShape shape;
    bool possible = false;  // the library knows a way
    std::string algorithm;  // "algorithm 66, tile 128x128, stages 4, split-k 1, workspace 0 KiB"
    size_t workspace_bytes = 0;
    std::shared_ptr<void> descriptor_data;  // the library's descriptors and algorithm

    std::string describe() const;
};

struct GemmOperands {
    const void* x = nullptr;
    const void* w = nullptr;
    void* y = nullptr;
    const float* x_scales = nullptr;  // fp8
    const float* w_scales = nullptr;
};

}  // namespace ferry
