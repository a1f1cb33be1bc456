#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

template <typename T, int kWidth>
__global__ void write_cache_kernel(const float* latent, int64_t stride, const int64_t* slots,
                                   T* cache, int64_t num_rows, int64_t width) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    if (column >= width) return;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
        if (slots[row] == kNoSlot) continue;
        store(load<kWidth>(latent + row * stride + column), cache + slots[row] * width + column);
    }
}

struct Rotated {
    const int32_t* positions;
    const float* table;  // [positions, 2 pairs]
    int64_t pairs;       // of the last 2 pairs columns
    bool interleave;
};

// The value of one of the rotated columns, counted from the first of them: every product rounded
// before the sum, as on the CPU.
__device__ __forceinline__ float rotated(const float* row, int64_t column, const float2* angles,
                                         const Rotated& call) {
    const bool is_second = call.interleave ? column % 2 != 0 : column >= call.pairs;
    const int64_t pair = call.interleave ? column / 2 : column - (is_second ? call.pairs : 0);
    const int64_t first = call.interleave ? 2 * pair : pair;
    const float a = row[first], b = row[first + (call.interleave ? 1 : call.pairs)];
    const float2 angle = angles[pair];
    return is_second ? __fadd_rn(__fmul_rn(a, angle.y), __fmul_rn(b, angle.x))
                     : __fadd_rn(__fmul_rn(a, angle.x), -__fmul_rn(b, angle.y));
}

// As write_cache_kernel; each thread rotates its own columns.
template <typename T, int kWidth>
__global__ void rope_write_cache_kernel(const float* latent, int64_t stride, const int64_t* slots,
                                        T* cache, int64_t num_rows, int64_t width, Rotated call) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    if (column >= width) return;
    const int64_t plain = width - 2 * call.pairs;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
        if (slots[row] == kNoSlot) continue;
        const float* from = latent + row * stride;
        auto values = load<kWidth>(from + column);
        if (column + kWidth > plain) {
            const auto* angles =
                reinterpret_cast<const float2*>(call.table) + call.positions[row] * call.pairs;
#pragma unroll
            for (int i = 0; i < kWidth; ++i)
                if (column + i >= plain)
                    values.values[i] = rotated(from + plain, column + i - plain, angles, call);
        }
        store(values, cache + slots[row] * width + column);
    }
}

template <typename T, int kWidth>
__global__ void read_cache_kernel(const T* cache, const int32_t* pages, int64_t first, float* out,
                                  int64_t stride, int64_t num_rows, int64_t width) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    if (column >= width) return;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
        const int64_t position = first + row;
        const int64_t slot = pages[position / kPageTokens] * kPageTokens + position % kPageTokens;
        store(load<kWidth>(cache + slot * width + column), out + row * stride + column);
    }
}

void check_cache(const Tensor& cache, int64_t width) {
    FERRY_CHECK(cache.dtype() == DType::f32 || cache.dtype() == DType::bf16, "cache is {}",
                cache.describe());
    check_shape(cache, "cache", cache.dtype(), {cache.dim(0), kPageTokens, width});
}

}  // namespace

void CudaKernels::write_cache(const Tensor& latent, std::span<const int64_t> slots,
                              const Tensor& cache) {
    const auto rows = static_cast<int64_t>(slots.size());
    const int64_t width = cache.dim(2);
    check_shape(latent, "latent", DType::f32, {rows, width});
    check_cache(cache, width);
    if (latent.empty()) return;
    const int64_t* on_device = step_arrays_.on_device(slots);
    with_width(takes_vectors(width, {latent, cache}), [&](auto vector) {
        const auto write = [&]<typename T>(T* to) {
            launch_early(write_cache_kernel<T, vector>, elementwise_shape(rows, width / vector),
                         stream(), latent.as<float>(), latent.row_stride(), on_device, to, rows,
                         width);
        };
        cache.dtype() == DType::f32 ? write(cache.as<float>()) : write(cache.as<uint16_t>());
    });
}

void CudaKernels::rope_write_cache(const Tensor& latent, std::span<const int32_t> positions,
                                   const Tensor& table, bool interleave,
                                   std::span<const int64_t> slots, const Tensor& cache) {
    const auto rows = static_cast<int64_t>(slots.size());
    const int64_t width = cache.dim(2), r = table.dim(1);
    check_shape(latent, "latent", DType::f32, {rows, width});
    check_shape(table, "table", DType::f32, {table.rows(), r});
    check_cache(cache, width);
    FERRY_CHECK(static_cast<int64_t>(positions.size()) == rows, "{} positions of {} rows",
                positions.size(), rows);
    FERRY_CHECK(r % 2 == 0 && r <= width && table.contiguous(), "{} rotated columns of {}", r,
                width);
    for (int32_t position : positions)
        FERRY_CHECK(position >= 0 && position < table.rows(), "position {} of {}", position,
                    table.rows());
    if (latent.empty()) return;
    const Rotated rotated{.positions = step_arrays_.on_device(positions),
                          .table = table.as<float>(),
                          .pairs = r / 2,
                          .interleave = interleave};
    const int64_t* on_device = step_arrays_.on_device(slots);
    with_width(takes_vectors(width, {latent, cache}), [&](auto vector) {
        const auto write = [&]<typename T>(T* to) {
            launch_early(rope_write_cache_kernel<T, vector>,
                         elementwise_shape(rows, width / vector), stream(), latent.as<float>(),
                         latent.row_stride(), on_device, to, rows, width, rotated);
        };
        cache.dtype() == DType::f32 ? write(cache.as<float>()) : write(cache.as<uint16_t>());
    });
}

void CudaKernels::read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                             const Tensor& out) {
    const int64_t rows = out.rows(), width = cache.dim(2);
    check_shape(out, "out", DType::f32, {rows, width});
    check_cache(cache, width);
    FERRY_CHECK(first >= 0 && static_cast<int64_t>(pages.size()) * kPageTokens >= first + rows,
                "{} pages for positions {}+{}", pages.size(), first, rows);
    if (out.empty()) return;
    const int32_t* on_device = step_arrays_.on_device(pages);
    with_width(takes_vectors(width, {out, cache}), [&](auto vector) {
        const auto read = [&]<typename T>(const T* from) {
            launch_early(read_cache_kernel<T, vector>, elementwise_shape(rows, width / vector),
                         stream(), from, on_device, first, out.as<float>(), out.row_stride(), rows,
                         width);
        };
        cache.dtype() == DType::f32 ? read(cache.as<float>()) : read(cache.as<uint16_t>());
    });
}

}  // namespace ferry
