// Forms in which weights are stored: types with scales, and how those lie.
#pragma once
#include <optional>

#include "base/dtype.h"

namespace ferry {

constexpr int64_t kScaleBlock = 128;  // fp8 scale blocks, DeepSeek-V3 "weight_block_size"
constexpr int64_t kInt4Group = 32;  // values of a row with one scale, Kimi-K2-Thinking "group_size"

// One scale in NAME_scale for so many rows and columns of a matrix of values; a weight is value *
// scale.
struct ScaleForm {
    DType dtype;
    int64_t rows, columns;
};
constexpr std::optional<ScaleForm> scale_form(DType stored) {
    if (stored == DType::fp8_e4m3) return ScaleForm{DType::f32, kScaleBlock, kScaleBlock};
    if (stored == DType::int4x2) return ScaleForm{DType::bf16, 1, kInt4Group};
    return std::nullopt;
}

// Elements of a row of so many values, and back.
constexpr int64_t stored_columns(DType stored, int64_t values) {
    return stored == DType::int4x2 ? values / 2 : values;
}
constexpr int64_t num_values(DType stored, int64_t columns) {
    return stored == DType::int4x2 ? columns * 2 : columns;
}

// Weights whose rows are prepared as bf16 weights' are.
constexpr DType rows_as(DType weights) {
    return weights == DType::int4x2 ? DType::bf16 : weights;
}

}  // namespace ferry
