// RMSNorm, by itself, after adding to the residual stream, or quantised, and LayerNorm. One block
// per row, which is read once and kept in shared memory.
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/fp8.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

struct Norm {
    const float* x = nullptr;
    float* h = nullptr;  // or the rows that x is added to
    const float* weight = nullptr;
    float* y = nullptr;
    uint8_t* q = nullptr;
    float* scales = nullptr;
    int64_t dim = 0, x_stride = 0, h_stride = 0, y_stride = 0, q_stride = 0, scales_stride = 0;
    float eps = 0;
    bool power_of_two = false;
};

// Fills `row` with the block's row of x, or of h + x, which h becomes; returns the factor that
// norms it.
template <int kWidth>
__device__ __forceinline__ float load_row(const Norm& norm, float* row, float* sums) {
    const float* x = norm.x + blockIdx.x * norm.x_stride;
    float* h = norm.h != nullptr ? norm.h + blockIdx.x * norm.h_stride : nullptr;
    float sum = 0;
    for (int64_t i = threadIdx.x * kWidth; i < norm.dim; i += blockDim.x * kWidth) {
        auto value = load<kWidth>(x + i);
        if (h != nullptr) {
            const auto residual = load<kWidth>(h + i);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) value.values[j] = residual.values[j] + value.values[j];
            store(value, h + i);
        }
        store(value, row + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum = fmaf(value.values[j], value.values[j], sum);
    }
    const float mean = block_sum(sum, sums) / static_cast<float>(norm.dim);
    return 1.0f / sqrtf(mean + norm.eps);
}

// y may be x or h.
template <int kWidth>
__global__ void rms_norm_kernel(Norm norm) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    FERRY_DYNAMIC_SHARED(shared);
    __shared__ float sums[kWarpThreads];
    float* const row = reinterpret_cast<float*>(shared);
    const float scale = load_row<kWidth>(norm, row, sums);
    float* y = norm.y + blockIdx.x * norm.y_stride;
    for (int64_t i = threadIdx.x * kWidth; i < norm.dim; i += blockDim.x * kWidth) {
        auto value = load<kWidth>(row + i);  // this thread's own
        const auto factor = load<kWidth>(norm.weight + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
            value.values[j] = value.values[j] * scale * factor.values[j];
        store(value, y + i);
    }
}

// y may be x.
__global__ void layer_norm_kernel(Norm norm, const float* bias) {
    FERRY_DYNAMIC_SHARED(shared);
    __shared__ float sums[2][kWarpThreads];
    float* const row = reinterpret_cast<float*>(shared);
    const float* const x = norm.x + blockIdx.x * norm.x_stride;
    float* const y = norm.y + blockIdx.x * norm.y_stride;
    float sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < norm.dim; i += blockDim.x) {
        row[i] = x[i];
        sum += row[i];
    }
    const float mean = block_sum(sum, sums[0]) / static_cast<float>(norm.dim);
    for (int64_t i = threadIdx.x; i < norm.dim; i += blockDim.x)
        squares = fmaf(row[i] - mean, row[i] - mean, squares);
    const float variance = block_sum(squares, sums[1]) / static_cast<float>(norm.dim);
    const float scale = 1.0f / sqrtf(variance + norm.eps);
    for (int64_t i = threadIdx.x; i < norm.dim; i += blockDim.x)
        y[i] = fmaf((row[i] - mean) * scale, norm.weight[i], bias[i]);
}

// A warp quantises 128 columns at a time, four to a lane.
template <int kWidth>
__global__ void rms_norm_quantise_kernel(Norm norm) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    FERRY_DYNAMIC_SHARED(shared);
    __shared__ float sums[kWarpThreads];
    float* const row = reinterpret_cast<float*>(shared);
    const float scale = load_row<kWidth>(norm, row, sums);  // all have stored their part of the row
    uint8_t* q = norm.q + blockIdx.x * norm.q_stride;
    const int64_t lane = threadIdx.x % kWarpThreads, warps = blockDim.x / kWarpThreads;
    for (int64_t block = threadIdx.x / kWarpThreads; block * 128 < norm.dim; block += warps) {
        const int64_t column = block * 128 + 4 * lane;
        float values[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (column + j < norm.dim)
                values[j] = row[column + j] * scale * norm.weight[column + j];
        const float block_scale = fp8_scale(warp_max(fp8_magnitude(values)), norm.power_of_two);
        if (lane == 0) norm.scales[blockIdx.x * norm.scales_stride + block] = block_scale;
        if constexpr (kWidth == 4) {
            if (column < norm.dim)
                *reinterpret_cast<uint32_t*>(q + column) = pack_fp8(values, block_scale);
        } else {
            for (int j = 0; j < 4; ++j)
                if (column + j < norm.dim) q[column + j] = to_fp8(values[j] / block_scale);
        }
    }
}

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& y, DType dtype) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_shape(x, "x", DType::f32, {rows, dim});
    check_shape(weight, "weight", DType::f32, {dim});
    check_shape(y, "y", dtype, {rows, dim});
}

}  // namespace

void CudaKernels::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_norm(x, weight, y, DType::f32);
    if (x.empty()) return;
    const Norm norm{.x = x.as<float>(),
                    .weight = weight.as<float>(),
                    .y = y.as<float>(),
                    .dim = dim,
                    .x_stride = x.row_stride(),
                    .y_stride = y.row_stride(),
                    .eps = eps};
    with_width(takes_vectors(dim, {x, y, weight.reshape({1, dim})}), [&](auto width) {
        launch_early(rms_norm_kernel<width>, row_shape(rows, dim), stream(), norm);
    });
}

void CudaKernels::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                             const Tensor& y) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_norm(x, weight, y, DType::f32);
    check_shape(bias, "bias", DType::f32, {dim});
    if (x.empty()) return;
    launch(layer_norm_kernel, row_shape(rows, dim), stream(),
           Norm{.x = x.as<float>(),
                .weight = weight.as<float>(),
                .y = y.as<float>(),
                .dim = dim,
                .x_stride = x.row_stride(),
                .y_stride = y.row_stride(),
                .eps = eps},
           bias.as<float>());
}

void CudaKernels::add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                               const Tensor& y) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_norm(x, weight, y, DType::f32);
    check_shape(h, "h", DType::f32, {rows, dim});
    if (x.empty()) return;
    const Norm norm{.x = x.as<float>(),
                    .h = h.as<float>(),
                    .weight = weight.as<float>(),
                    .y = y.as<float>(),
                    .dim = dim,
                    .x_stride = x.row_stride(),
                    .h_stride = h.row_stride(),
                    .y_stride = y.row_stride(),
                    .eps = eps};
    with_width(takes_vectors(dim, {x, h, y, weight.reshape({1, dim})}), [&](auto width) {
        launch_early(rms_norm_kernel<width>, row_shape(rows, dim), stream(), norm);
    });
}

void CudaKernels::rms_norm_quantise(const Tensor& x, const Tensor& weight, float eps,
                                    bool power_of_two_scales, const Tensor& q,
                                    const Tensor& scales) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_norm(x, weight, q, DType::fp8_e4m3);
    check_shape(scales, "scales", DType::f32, {rows, ceil_div(dim, kScaleBlock)});
    if (x.empty()) return;
    const Norm norm{.x = x.as<float>(),
                    .weight = weight.as<float>(),
                    .q = q.as<uint8_t>(),
                    .scales = scales.as<float>(),
                    .dim = dim,
                    .x_stride = x.row_stride(),
                    .q_stride = q.row_stride(),
                    .scales_stride = scales.row_stride(),
                    .eps = eps,
                    .power_of_two = power_of_two_scales};
    with_width(takes_vectors(dim, {x, q, weight.reshape({1, dim})}), [&](auto width) {
        launch_early(rms_norm_quantise_kernel<width>, row_shape(rows, dim), stream(), norm);
    });
}

}  // namespace ferry
