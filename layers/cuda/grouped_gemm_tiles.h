// The tiles of grouped products, which every block finds from the offsets by itself: groups, then
// columns of y, then rows, so that a group's weights come from memory once.
#pragma once
#include <algorithm>

#include "base/cuda_api.h"
#include "layers/cuda/grouped_gemm_launch.h"

namespace ferry {

__device__ inline int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// first_tile[g]: tiles along the rows of all groups before g; [groups]: of all; [groups + 1]: rows
// of the largest group.
__device__ inline void count_tiles(const GroupedGemmParams& p, int most_tile_rows,
                                   int* first_tile) {
    for (int group = threadIdx.x; group < p.groups; group += kGemmThreads)
        first_tile[group] = static_cast<int>(p.offsets[group + 1] - p.offsets[group]);
    __syncthreads();
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, each = ceil_div(p.groups, 32);
        const int begin = min(lane * each, p.groups), end = min(begin + each, p.groups);
        int tiles = 0, most = 0;
        for (int group = begin; group < end; ++group) {
            tiles += ceil_div(first_tile[group], most_tile_rows);
            most = max(most, first_tile[group]);
        }
        int before = tiles;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = __shfl_up_sync(~0u, before, distance);
            if (lane >= distance) before += other;
            most = max(most, __shfl_xor_sync(~0u, most, distance));
        }
        if (lane == 31) {
            first_tile[p.groups] = before;
            first_tile[p.groups + 1] = most;
        }
        before -= tiles;
        for (int group = begin; group < end; ++group) {
            const int own = ceil_div(first_tile[group], most_tile_rows);
            first_tile[group] = before;
            before += own;
        }
    }
    __syncthreads();
}

struct GemmTile {
    int group = 0;
    int64_t first_row = 0;  // of x and y
    int num_rows = 0;       // of the group from there on
    int first_column = 0;
};

__device__ inline int num_tiles(const GroupedGemmParams& p, int columns, const int* first_tile) {
    return first_tile[p.groups] * ceil_div(p.out, columns);
}

// The tile and its group. `group`: that of the block's previous tile, from where the search goes
// on: one by one, in few registers, or by halves, in fewer steps where many groups are empty.
template <bool kByHalves>
__device__ inline GemmTile find_tile(const GroupedGemmParams& p, int index, int columns,
                                     int most_tile_rows, const int* first_tile, int& group) {
    const int column_tiles = ceil_div(p.out, columns);
    if constexpr (kByHalves) {
        // The last that begins with the tile or before it; empty ones before it do too.
        const int row_tile = index / column_tiles;
#pragma unroll 1
        for (int further = kGemmMostGroups / 2; further > 0; further /= 2)
            if (group + further < p.groups && first_tile[group + further] <= row_tile)
                group += further;
    } else {
        while (index >= first_tile[group + 1] * column_tiles) ++group;
    }
    const int64_t begin = p.offsets[group];
    const int rows = static_cast<int>(p.offsets[group + 1] - begin);
    const int row_tiles = ceil_div(rows, most_tile_rows);
    const int local = index - first_tile[group] * column_tiles;
    const int first = local % row_tiles * most_tile_rows;
    return {group, begin + first, rows - first, local / row_tiles * columns};
}

// The first of the int4 tiles of a tile's columns.
__device__ inline const std::byte* int4_tile(const GroupedGemmParams& p, const GemmTile& tile) {
    const int column_tiles = ceil_div(p.out, kInt4TileRows);
    const int64_t index =
        (static_cast<int64_t>(tile.group) * column_tiles + tile.first_column / kInt4TileRows) *
        ceil_div(p.in, kInt4TileValues);
    return static_cast<const std::byte*>(p.w) + index * kInt4TileBytes;
}

}  // namespace ferry
