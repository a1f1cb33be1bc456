// fp8 activations and the conversions that products need.
#include "base/cuda_launch.h"
#include "layers/cuda/convert.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/fast_exp.h"
#include "layers/cuda/fp8.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

struct Quantise {
    const float* x;  // [rows, columns], or gate and up [rows, 2 columns]
    uint8_t* q;
    float* scales;
    int64_t rows, columns, x_stride, q_stride, scales_stride;
    bool power_of_two;
    const int64_t* num_rows;  // of `rows`, or null
};

// `width` values to be quantised, from column `column` on.
template <int kWidth, bool kSilu>
__device__ __forceinline__ FloatVector<kWidth> load_values(const float* row, int64_t column,
                                                           int64_t columns) {
    auto values = load<kWidth>(row + column);
    if constexpr (kSilu) {
        const auto up = load<kWidth>(row + columns + column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
            values.values[i] = fast_silu(values.values[i]) * up.values[i];
    }
    return values;
}

// One warp per block of 128 values, four to a lane.
template <int kWidth, bool kSilu>
__global__ void quantise_kernel(Quantise call) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t blocks = (call.columns + 127) / 128;
    const int64_t index =
        static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (index >= call.rows * blocks) return;  // a whole warp
    const int64_t row = index / blocks, block = index % blocks;
    if (call.num_rows != nullptr && row >= *call.num_rows) return;
    const int64_t lane = threadIdx.x % kWarpThreads;
    const float* x = call.x + row * call.x_stride;
    float values[4] = {};
    // Lanes take four neighbours, or every 32nd value.
    if constexpr (kWidth == 4) {
        const int64_t column = block * 128 + 4 * lane;
        if (column < call.columns) {
            const auto loaded = load_values<4, kSilu>(x, column, call.columns);
#pragma unroll
            for (int j = 0; j < 4; ++j) values[j] = loaded.values[j];
        }
    } else {
        for (int j = 0; j < 4; ++j) {
            const int64_t column = block * 128 + lane + 32 * j;
            if (column < call.columns)
                values[j] = load_values<1, kSilu>(x, column, call.columns).values[0];
        }
    }
    const float scale = fp8_scale(warp_max(fp8_magnitude(values)), call.power_of_two);
    if (lane == 0) call.scales[row * call.scales_stride + block] = scale;
    uint8_t* q = call.q + row * call.q_stride;
    if constexpr (kWidth == 4) {
        const int64_t column = block * 128 + 4 * lane;
        if (column < call.columns)
            *reinterpret_cast<uint32_t*>(q + column) = pack_fp8(values, scale);
    } else {
        for (int j = 0; j < 4; ++j) {
            const int64_t column = block * 128 + lane + 32 * j;
            if (column < call.columns) q[column] = to_fp8(values[j] / scale);
        }
    }
}

template <int kWidth>
__global__ void narrow_kernel(NarrowToBf16 call) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    if (at >= call.heads * call.columns) return;
    const int64_t head = at / call.columns, column = at % call.columns;
    for (int64_t row = blockIdx.y; row < call.rows; row += gridDim.y)
        store(load<kWidth>(call.x + row * call.x_row_stride + head * call.x_head_stride + column),
              call.y + (row * call.heads + head) * call.y_stride + column);
}

template <int kWidth>
__global__ void widen_fp8_kernel(WidenFp8 call) {
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    if (column >= call.columns) return;
    for (int64_t row = blockIdx.y; row < call.rows; row += gridDim.y) {
        const float scale =
            call.scales[row / call.rows_per_scale * call.scales_stride + column / 128];
        auto value = load_fp8<kWidth>(call.x + row * call.x_stride + column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) value.values[i] *= scale;
        store(value, call.y + row * call.y_stride + column);
    }
}

__global__ void transpose_kernel(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                                 float* y, int64_t y_stride) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y)
        y[column * y_stride + row] = x[row * x_stride + column];
}

bool multiple_of(const void* address, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace

// x: [rows, columns], or [rows, 2 columns] for silu(gate) * up.
template <bool kSilu>
void CudaKernels::quantise_rows(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                                const Tensor& scales, const int64_t* num_rows) {
    const int64_t rows = x.rows(), columns = q.dim(1);
    check_shape(x, "x", DType::f32, {rows, kSilu ? 2 * columns : columns});
    check_shape(q, "q", DType::fp8_e4m3, {rows, columns});
    check_shape(scales, "scales", DType::f32, {rows, ceil_div(columns, kScaleBlock)});
    if (x.empty()) return;
    with_width(takes_vectors(columns, {x, q}), [&](auto width) {
        launch_early(quantise_kernel<width, kSilu>, quantise_shape(rows, columns), stream(),
                     Quantise{.x = x.as<float>(),
                              .q = q.as<uint8_t>(),
                              .scales = scales.as<float>(),
                              .rows = rows,
                              .columns = columns,
                              .x_stride = x.row_stride(),
                              .q_stride = q.row_stride(),
                              .scales_stride = scales.row_stride(),
                              .power_of_two = power_of_two_scales,
                              .num_rows = num_rows});
    });
}

void CudaKernels::quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                               const Tensor& scales, const int64_t* num_rows) {
    quantise_rows<false>(x, power_of_two_scales, q, scales, num_rows);
}

void CudaKernels::silu_mul_quantise(const Tensor& gate_up, bool power_of_two_scales,
                                    const Tensor& q, const Tensor& scales,
                                    const int64_t* num_rows) {
    quantise_rows<true>(gate_up, power_of_two_scales, q, scales, num_rows);
}

void narrow_to_bf16(const NarrowToBf16& call, CUstream_st* stream) {
    if (call.rows * call.heads * call.columns == 0) return;
    const bool vectors = call.columns % 4 == 0 && call.x_row_stride % 4 == 0 &&
                         call.x_head_stride % 4 == 0 && call.y_stride % 4 == 0 &&
                         multiple_of(call.x, 16) && multiple_of(call.y, 8);
    with_width(vectors, [&](auto width) {
        launch_early(narrow_kernel<width>,
                     elementwise_shape(call.rows, call.heads * call.columns / width), stream, call);
    });
}

void widen_fp8(const WidenFp8& call, CUstream_st* stream) {
    if (call.rows * call.columns == 0) return;
    const bool vectors = call.columns % 4 == 0 && call.x_stride % 4 == 0 &&
                         call.y_stride % 4 == 0 && multiple_of(call.x, 4) && multiple_of(call.y, 8);
    with_width(vectors, [&](auto width) {
        launch(widen_fp8_kernel<width>, elementwise_shape(call.rows, call.columns / width), stream,
               call);
    });
}

void transpose(const Tensor& x, float* y, int64_t y_stride, CUstream_st* stream) {
    if (x.empty()) return;
    launch(transpose_kernel, elementwise_shape(x.rows(), x.dim(1)), stream, x.as<float>(),
           x.row_stride(), x.rows(), x.dim(1), y, y_stride);
}

void copy_rows(const void* x, int64_t x_stride_bytes, void* y, int64_t y_stride_bytes,
               int64_t row_bytes, int64_t rows, CUstream_st* stream) {
    check_cuda(
        cudaMemcpy2DAsync(y, static_cast<size_t>(y_stride_bytes), x,
                          static_cast<size_t>(x_stride_bytes), static_cast<size_t>(row_bytes),
                          static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream),
        "copy rows");
}

}  // namespace ferry
