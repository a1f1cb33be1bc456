#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/fast_exp.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

// Matrices as kernels see them: where row 0 begins, and elements from row to row.
template <typename T>
struct Rows {
    T* data;
    int64_t stride;
};
template <typename T>
Rows<T> rows_of(const Tensor& tensor) {
    return {tensor.as<T>(), tensor.row_stride()};
}

__device__ __forceinline__ int64_t thread_column() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <int kWidth>
__global__ void add_kernel(Rows<const float> x, Rows<float> y, int64_t num_rows, int64_t columns) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = thread_column() * kWidth;
    if (column >= columns) return;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
        float* to = y.data + row * y.stride + column;
        const auto a = load<kWidth>(x.data + row * x.stride + column);
        auto b = load<kWidth>(to);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) b.values[i] += a.values[i];
        store(b, to);
    }
}

template <int kWidth>
__global__ void silu_mul_kernel(Rows<const float> gate_up, Rows<float> y, int64_t num_rows,
                                const int64_t* num_used, int64_t inter) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = thread_column() * kWidth;
    if (column >= inter) return;
    if (num_used != nullptr) num_rows = *num_used;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
        const float* from = gate_up.data + row * gate_up.stride + column;
        const auto gate = load<kWidth>(from);
        auto up = load<kWidth>(from + inter);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) up.values[i] = fast_silu(gate.values[i]) * up.values[i];
        store(up, y.data + row * y.stride + column);
    }
}

// y[i] = x[indices[i]]: embedding, and rows whose logits are wanted.
template <typename T, int kWidth>
__global__ void gather_kernel(Rows<const T> x, const int32_t* indices, Rows<float> y,
                              int64_t num_rows, int64_t columns) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = thread_column() * kWidth;
    if (column >= columns) return;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y)
        store(load<kWidth>(x.data + indices[row] * x.stride + column),
              y.data + row * y.stride + column);
}

// Threads along x take the columns of all heads of a row.
template <typename T, int kWidth>
__global__ void copy_head_columns_kernel(Rows<const float> x, int64_t head_dim,
                                         int64_t first_column, Rows<T> y, int64_t num_rows,
                                         int64_t heads, int64_t columns) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t column = thread_column() * kWidth;
    if (column >= heads * columns) return;
    const int64_t head = column / columns;
    const int64_t from = head * head_dim + first_column + column % columns;
    for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y)
        store(load<kWidth>(x.data + row * x.stride + from), y.data + row * y.stride + column);
}

// Sum of kNum parts by halves, as kernels.h says.
template <int kNum, int kWidth>
__device__ __forceinline__ FloatVector<kWidth> sum_by_halves(const float* parts, int64_t stride) {
    if constexpr (kNum == 1) {
        return load<kWidth>(parts);
    } else {
        auto sum = sum_by_halves<kNum / 2, kWidth>(parts, stride);
        const auto upper =
            sum_by_halves<kNum - kNum / 2, kWidth>(parts + kNum / 2 * stride, stride);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum.values[i] += upper.values[i];
        return sum;
    }
}
template <int kNum, int kWidth>
__global__ void tree_sum_kernel(const float* parts, int64_t part_stride, float* y, int64_t count) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t at = thread_column() * kWidth;
    if (at < count) store(sum_by_halves<kNum, kWidth>(parts + at, part_stride), y + at);
}

// As many parts as there are: slower, since the partial sums go through local memory.
template <int kWidth>
__global__ void long_tree_sum_kernel(const float* parts, int64_t num, int64_t part_stride, float* y,
                                     int64_t count) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    constexpr int kMaxDepth = 32;
    const int64_t at = thread_column() * kWidth;
    if (at >= count) return;
    FloatVector<kWidth> open[kMaxDepth];  // sums that wait for their right-hand neighbour
    int depth = 0;
    for (int64_t leaf = 0; leaf < num; ++leaf) {
        open[depth++] = load<kWidth>(parts + leaf * part_stride + at);
        int complete = 0;  // sums that end with this leaf
        for (int64_t begin = 0, size = num; size > 1;) {
            complete += begin + size == leaf + 1;
            const int64_t half = size / 2;
            if (leaf < begin + half) {
                size = half;
            } else {
                begin += half;
                size -= half;
            }
        }
        for (; complete > 0; --complete) {
            --depth;
#pragma unroll
            for (int i = 0; i < kWidth; ++i) open[depth - 1].values[i] += open[depth].values[i];
        }
    }
    store(open[0], y + at);
}

void check_rows(const Tensor& x, const char* name, int64_t rows, int64_t columns) {
    FERRY_CHECK(x.dtype() == DType::f32 && x.rows() == rows && x.row_size() == columns,
                "{} is {}, expected {} rows of {} f32", name, x.describe(), rows, columns);
}

}  // namespace

void CudaKernels::add(const Tensor& x, const Tensor& y) {
    const int64_t rows = y.rows(), columns = y.row_size();
    check_rows(x, "x", rows, columns);
    check_rows(y, "y", rows, columns);
    if (y.empty()) return;
    with_width(takes_vectors(columns, {x, y}), [&](auto width) {
        launch_early(add_kernel<width>, elementwise_shape(rows, columns / width), stream(),
                     rows_of<const float>(x), rows_of<float>(y), rows, columns);
    });
}

void CudaKernels::silu_mul(const Tensor& gate_up, const Tensor& y, const int64_t* num_rows) {
    const int64_t rows = y.rows(), inter = y.dim(1);
    check_rows(gate_up, "gate_up", rows, 2 * inter);
    check_rows(y, "y", rows, inter);
    if (y.empty()) return;
    with_width(takes_vectors(inter, {gate_up, y}), [&](auto width) {
        launch_early(silu_mul_kernel<width>, elementwise_shape(rows, inter / width), stream(),
                     rows_of<const float>(gate_up), rows_of<float>(y), rows, num_rows, inter);
    });
}

void CudaKernels::embed(std::span<const int32_t> tokens, const Tensor& table, const Tensor& y) {
    const auto rows = static_cast<int64_t>(tokens.size());
    const int64_t dim = table.dim(1);
    check_shape(y, "y", DType::f32, {rows, dim});
    FERRY_CHECK(table.dtype() == DType::f32 || table.dtype() == DType::bf16, "table {}",
                table.describe());
    for (int32_t token : tokens)
        FERRY_CHECK(token >= 0 && token < table.rows(), "token {} of {}", token, table.rows());
    if (y.empty()) return;
    const auto* indices = step_arrays_.on_device(tokens);
    with_width(takes_vectors(dim, {table, y}), [&](auto width) {
        const LaunchShape shape = elementwise_shape(rows, dim / width);
        if (table.dtype() == DType::f32)
            launch_early(gather_kernel<float, width>, shape, stream(), rows_of<const float>(table),
                         indices, rows_of<float>(y), rows, dim);
        else
            launch_early(gather_kernel<uint16_t, width>, shape, stream(),
                         rows_of<const uint16_t>(table), indices, rows_of<float>(y), rows, dim);
    });
}

void CudaKernels::gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) {
    check_rows(x, "x", x.rows(), y.row_size());
    embed(rows, x.reshape({x.rows(), x.row_size()}), y.reshape({y.rows(), y.row_size()}));
}

void CudaKernels::copy_head_columns(const Tensor& x, int64_t first_column, const Tensor& y) {
    const int64_t rows = x.rows(), heads = x.dim(1), head_dim = x.dim(2), columns = y.dim(2);
    check_shape(y, "y", y.dtype() == DType::bf16 ? DType::bf16 : DType::f32,
                {rows, heads, columns});
    FERRY_CHECK(x.dtype() == DType::f32 && first_column >= 0 && first_column + columns <= head_dim,
                "columns {}+{} of {}", first_column, columns, x.describe());
    if (y.empty()) return;
    const bool vectors = takes_vectors(columns, {x, y}) && head_dim % kFloatsPerVector == 0 &&
                         first_column % kFloatsPerVector == 0;
    with_width(vectors, [&](auto width) {
        const auto copy = [&]<typename T>(Rows<T> to) {
            launch_early(copy_head_columns_kernel<T, width>,
                         elementwise_shape(rows, heads * columns / width), stream(),
                         rows_of<const float>(x), head_dim, first_column, to, rows, heads, columns);
        };
        y.dtype() == DType::f32 ? copy(rows_of<float>(y)) : copy(rows_of<uint16_t>(y));
    });
}

void CudaKernels::tree_sum(const Tensor& parts, const Tensor& y) {
    const int64_t num = parts.dim(0);
    check_shape(y, "y", DType::f32, {y.rows(), y.dim(1)});
    check_shape(parts, "parts", DType::f32, {num, y.rows(), y.dim(1)});
    FERRY_CHECK(y.contiguous(), "y is a range of columns: {}", y.describe());
    const int64_t count = y.count();
    if (count == 0) return;
    const auto run = [&]<int kNum>(std::integral_constant<int, kNum>) {
        with_width(takes_vectors(count, {parts, y}), [&](auto width) {
            launch_early(tree_sum_kernel<kNum, width>, elementwise_shape(1, count / width),
                         stream(), parts.as<float>(), parts.row_stride(), y.as<float>(), count);
        });
    };
    switch (num) {
        case 1:
            return run(std::integral_constant<int, 1>());
        case 2:
            return run(std::integral_constant<int, 2>());
        case 4:
            return run(std::integral_constant<int, 4>());
        case 8:
            return run(std::integral_constant<int, 8>());
        default:
            launch_early(long_tree_sum_kernel<1>, elementwise_shape(1, count), stream(),
                         parts.as<float>(), num, parts.row_stride(), y.as<float>(), count);
    }
}

}  // namespace ferry
