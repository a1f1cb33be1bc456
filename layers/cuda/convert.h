// Conversions between element types on the GPU (quantise.cu), in the order of a stream.
#pragma once
#include "base/device_cuda.h"
#include "base/tensor.h"

namespace ferry {

// y = bf16(x), to nearest even. x: f32 [rows, heads, columns] with heads head_stride elements
// apart; y: bf16, row r and head h begin at (r * heads + h) * y_stride.
struct NarrowToBf16 {
    const float* x = nullptr;
    uint16_t* y = nullptr;
    int64_t rows = 0, heads = 1, columns = 0;
    int64_t x_row_stride = 0, x_head_stride = 0, y_stride = 0;
};
void narrow_to_bf16(const NarrowToBf16& call, CUstream_st* stream);

// y = bf16(fp8 value * its scale). One scale for every 128 columns and rows_per_scale rows.
struct WidenFp8 {
    const uint8_t* x = nullptr;
    const float* scales = nullptr;
    uint16_t* y = nullptr;
    int64_t rows = 0, columns = 0;
    int64_t x_stride = 0, scales_stride = 0, y_stride = 0;
    int64_t rows_per_scale = 1;  // 1 (activations) or 128 (weights)
};
void widen_fp8(const WidenFp8& call, CUstream_st* stream);

// y[j * y_stride + i] = x[i][j], x f32 [rows, columns]: small matrices (scales).
void transpose(const Tensor& x, float* y, int64_t y_stride, CUstream_st* stream);

// Rows of bytes to where they are y_stride_bytes apart.
void copy_rows(const void* x, int64_t x_stride_bytes, void* y, int64_t y_stride_bytes,
               int64_t row_bytes, int64_t rows, CUstream_st* stream);

}  // namespace ferry
