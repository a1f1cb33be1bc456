#include "layers/cuda/tensor_parallel_launch.h"

#include <algorithm>
#include <bit>

#include "base/cuda_launch.h"
#include "layers/cuda/vector.h"

namespace ferry {
namespace {

__device__ __forceinline__ int64_t thread_column() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <int kWidth>
__device__ __forceinline__ void add_to(FloatVector<kWidth>& sum, const FloatVector<kWidth>& other) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum.values[i] += other.values[i];
}

// ---- Sums

template <int kNum, int kWidth>
__device__ __forceinline__ FloatVector<kWidth> sum_by_halves(const float* const* nodes,
                                                             int64_t at) {
    if constexpr (kNum == 1) {
        return load<kWidth>(nodes[0] + at);
    } else {
        auto sum = sum_by_halves<kNum / 2, kWidth>(nodes, at);
        add_to(sum, sum_by_halves<kNum / 2, kWidth>(nodes + kNum / 2, at));
        return sum;
    }
}
// Groups of 2, 4 and 8: a node of each member.
template <int kNum, int kWidth>
__global__ void halves_sum_kernel(const __grid_constant__ NodeSum p) {
    const int64_t at = thread_column() * kWidth;
    if (at < p.count) store(sum_by_halves<kNum, kWidth>(p.nodes, at), p.out + at);
}

// Any tree: partial sums go through local memory.
template <int kWidth>
__global__ void node_sum_kernel(const __grid_constant__ NodeSum p) {
    constexpr int kMaxDepth = 16;  // of a tree over 1024 slices, and more
    const int64_t at = thread_column() * kWidth;
    if (at >= p.count) return;
    FloatVector<kWidth> open[kMaxDepth];
    int depth = 0;
    for (int node = 0; node < p.num_nodes; ++node) {
        open[depth++] = load<kWidth>(p.nodes[node] + at);
        for (int merges = p.merges[node]; merges > 0; --merges) {
            --depth;
            add_to(open[depth - 1], open[depth]);
        }
    }
    store(open[0], p.out + at);
}

// After node n as many sums are complete as n + 1 has factors of 2.
bool is_by_halves(const NodeSum& p) {
    for (int node = 0; node < p.num_nodes; ++node)
        if (p.merges[node] != std::countr_zero(static_cast<unsigned>(node + 1))) return false;
    return std::has_single_bit(static_cast<unsigned>(p.num_nodes));
}

// ---- Rows of a table

template <typename T, int kWidth>
__global__ void held_rows_kernel(const __grid_constant__ HeldRows p) {
    const int64_t column = thread_column() * kWidth;
    if (column >= p.dim) return;
    for (int64_t row = blockIdx.y; row < p.num_ids; row += gridDim.y) {
        const int64_t held = p.ids[row] - p.first;
        if (held < 0 || held >= p.num_held) continue;
        store(load<kWidth>(static_cast<const T*>(p.table) + held * p.dim + column),
              p.out + row * p.dim + column);
    }
}

template <int kWidth>
__global__ void chosen_rows_kernel(const __grid_constant__ ChosenRows p) {
    const int64_t column = thread_column() * kWidth;
    if (column >= p.dim) return;
    for (int64_t row = blockIdx.y; row < p.num_ids; row += gridDim.y) {
        const int id = p.ids[row];
        int member = 0;
        while (member + 1 < p.from.num_members && id >= p.from.offsets[member + 1]) ++member;
        const int64_t at = row * p.dim + column;
        store(load<kWidth>(p.from.blocks[member] + at), p.out + at);
    }
}

// ---- Columns

// Members along z.
template <int kWidth>
__global__ void joined_columns_kernel(const __grid_constant__ JoinedColumns p) {
    const auto member = static_cast<int>(blockIdx.z);
    const int64_t first = p.from.offsets[member];
    const int64_t columns = p.from.offsets[member + 1] - first;
    const int64_t column = thread_column() * kWidth;
    if (column >= columns) return;
    for (int64_t row = blockIdx.y; row < p.num_rows; row += gridDim.y)
        store(load<kWidth>(p.from.blocks[member] + row * columns + column),
              p.out + row * p.out_stride + first + column);
}

bool aligned(const void* data, int64_t bytes = 4 * kFloatsPerVector) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}
bool aligned(const float* const* blocks, int num) {
    return std::all_of(blocks, blocks + num, [](const float* block) { return aligned(block); });
}

}  // namespace

void launch_node_sum(const NodeSum& p, CUstream_st* stream) {
    if (p.count == 0) return;
    const bool vectors =
        p.count % kFloatsPerVector == 0 && aligned(p.out) && aligned(p.nodes, p.num_nodes);
    with_width(vectors, [&](auto width) {
        const LaunchShape shape = elementwise_shape(1, p.count / width);
        const bool halves = is_by_halves(p);
        if (halves && p.num_nodes == 2)
            launch(halves_sum_kernel<2, width>, shape, stream, p);
        else if (halves && p.num_nodes == 4)
            launch(halves_sum_kernel<4, width>, shape, stream, p);
        else if (halves && p.num_nodes == 8)
            launch(halves_sum_kernel<8, width>, shape, stream, p);
        else
            launch(node_sum_kernel<width>, shape, stream, p);
    });
}

void launch_held_rows(const HeldRows& p, CUstream_st* stream) {
    if (p.num_ids == 0 || p.num_held == 0) return;
    const bool vectors = p.dim % kFloatsPerVector == 0 && aligned(p.out) &&
                         aligned(p.table, kFloatsPerVector * size_bytes(p.dtype));
    with_width(vectors, [&](auto width) {
        const LaunchShape shape = elementwise_shape(p.num_ids, p.dim / width);
        if (p.dtype == DType::f32)
            launch(held_rows_kernel<float, width>, shape, stream, p);
        else
            launch(held_rows_kernel<uint16_t, width>, shape, stream, p);
    });
}

void launch_chosen_rows(const ChosenRows& p, CUstream_st* stream) {
    if (p.num_ids == 0) return;
    const bool vectors = p.dim % kFloatsPerVector == 0 && aligned(p.out) &&
                         aligned(p.from.blocks, p.from.num_members);
    with_width(vectors, [&](auto width) {
        launch(chosen_rows_kernel<width>, elementwise_shape(p.num_ids, p.dim / width), stream, p);
    });
}

void launch_joined_columns(const JoinedColumns& p, CUstream_st* stream) {
    if (p.num_rows == 0) return;
    bool vectors = p.out_stride % kFloatsPerVector == 0 && aligned(p.out) &&
                   aligned(p.from.blocks, p.from.num_members);
    int64_t most = 0;
    for (int member = 0; member < p.from.num_members; ++member) {
        const int64_t columns = p.from.offsets[member + 1] - p.from.offsets[member];
        vectors = vectors && columns % kFloatsPerVector == 0;
        most = std::max(most, columns);
    }
    if (most == 0) return;
    with_width(vectors, [&](auto width) {
        LaunchShape shape = elementwise_shape(p.num_rows, most / width);
        shape.grid.z = static_cast<unsigned>(p.from.num_members);
        launch(joined_columns_kernel<width>, shape, stream, p);
    });
}

}  // namespace ferry
