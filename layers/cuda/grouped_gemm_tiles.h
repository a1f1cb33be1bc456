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

// first_tile[g]: tiles of all groups before g; [groups]: of all; [groups + 1]: rows of the largest
// group.
__device__ inline void count_tiles(const GroupedGemmParams& p, int columns, int most_tile_rows,
                                   int* first_tile) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, column_tiles = ceil_div(p.out, columns);
        int before = 0, most = 0;
        for (int begin = 0; begin < p.groups; begin += 32) {
            const int group = begin + lane;
            const int rows =
                group < p.groups ? static_cast<int>(p.offsets[group + 1] - p.offsets[group]) : 0;
            most = max(most, rows);
            const int own = ceil_div(rows, most_tile_rows) * column_tiles;
            int sum = own;
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const int other = __shfl_up_sync(~0u, sum, distance);
                if (lane >= distance) sum += other;
            }
            if (group < p.groups) first_tile[group] = before + sum - own;
            before += __shfl_sync(~0u, sum, 31);
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            most = max(most, __shfl_xor_sync(~0u, most, distance));
        if (lane == 0) {
            first_tile[p.groups] = before;
            first_tile[p.groups + 1] = most;
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

// `group` moves on from where the block's previous tile was.
__device__ inline GemmTile find_tile(const GroupedGemmParams& p, int index, int columns,
                                     int most_tile_rows, const int* first_tile, int& group) {
    while (index >= first_tile[group + 1]) ++group;
    const int64_t begin = p.offsets[group];
    const int rows = static_cast<int>(p.offsets[group + 1] - begin);
    const int row_tiles = ceil_div(rows, most_tile_rows), local = index - first_tile[group];
    const int first = local % row_tiles * most_tile_rows;
    return {group, begin + first, rows - first, local / row_tiles * columns};
}

}  // namespace ferry
