// One block per row, which is read once and kept in shared memory.
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

// y may be x.
template <int kWidth>
__global__ void rms_norm_kernel(const float* x, int64_t x_stride, const float* weight, float eps,
                                int64_t dim, float* y, int64_t y_stride) {
    FERRY_DYNAMIC_SHARED(shared);
    __shared__ float sums[kWarpThreads];
    float* const row = reinterpret_cast<float*>(shared);
    x += blockIdx.x * x_stride;
    y += blockIdx.x * y_stride;
    float sum = 0;
    for (int64_t i = threadIdx.x * kWidth; i < dim; i += blockDim.x * kWidth) {
        const auto value = load<kWidth>(x + i);
        store(value, row + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum = fmaf(value.values[j], value.values[j], sum);
    }
    const float mean = block_sum(sum, sums) / static_cast<float>(dim);
    const float scale = 1.0f / sqrtf(mean + eps);
    for (int64_t i = threadIdx.x * kWidth; i < dim; i += blockDim.x * kWidth) {
        auto value = load<kWidth>(row + i);  // this thread's own
        const auto factor = load<kWidth>(weight + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
            value.values[j] = value.values[j] * scale * factor.values[j];
        store(value, y + i);
    }
}

}  // namespace

void CudaKernels::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
    const int64_t rows = x.rows(), dim = x.dim(1);
    check_shape(x, "x", DType::f32, {rows, dim});
    check_shape(weight, "weight", DType::f32, {dim});
    check_shape(y, "y", DType::f32, {rows, dim});
    if (x.empty()) return;
    with_width(takes_vectors(dim, {x, y, weight.reshape({1, dim})}), [&](auto width) {
        launch(rms_norm_kernel<width>, row_shape(rows, dim), stream(), x.as<float>(),
               x.row_stride(), weight.as<float>(), eps, dim, y.as<float>(), y.row_stride());
    });
}

}  // namespace ferry
