// Launch shapes of the light kernels, as functions of their tensors' shapes.
#pragma once
#include <algorithm>
#include <cstdint>

#include "base/launch_shape.h"

namespace ferry {

constexpr unsigned kWarpThreads = 32;
constexpr int64_t kFloatsPerVector = 4;  // of a 16-byte access

// Kernels that give every value (or vector of values) of [rows, columns] a thread: columns along x,
// rows along y, each thread taking every grid.y-th row.
inline LaunchShape elementwise_shape(int64_t rows, int64_t columns) {
    constexpr int64_t kThreads = 256;
    const int64_t threads =
        std::min(kThreads, (columns + kWarpThreads - 1) / kWarpThreads * kWarpThreads);
    return {.grid = {.x = static_cast<unsigned>((columns + threads - 1) / threads),
                     .y = static_cast<unsigned>(std::min<int64_t>(rows, kMaxGridYZ))},
            .block = {.x = static_cast<unsigned>(threads)}};
}

// Kernels with one block per row of `dim` values, which it keeps in shared memory. The number of
// threads depends on dim alone, and so does the order of a row's sums. Every thread has about two
// vectors of a wide row.
inline LaunchShape row_shape(int64_t rows, int64_t dim) {
    constexpr int64_t kMinThreads = 64, kMaxThreads = 512;
    const int64_t vectors = (dim + kFloatsPerVector - 1) / kFloatsPerVector;
    const int64_t threads = (vectors / 2 + kWarpThreads - 1) / kWarpThreads * kWarpThreads;
    return {.grid = {.x = static_cast<unsigned>(rows)},
            .block = {.x = static_cast<unsigned>(std::clamp(threads, kMinThreads, kMaxThreads))},
            .shared_bytes = static_cast<size_t>(dim) * sizeof(float)};
}

// One warp per row and block of 128 columns.
inline LaunchShape quantise_shape(int64_t rows, int64_t columns) {
    constexpr int64_t kWarps = 8;
    const int64_t blocks = rows * ((columns + 127) / 128);
    return {.grid = {.x = static_cast<unsigned>((blocks + kWarps - 1) / kWarps)},
            .block = {.x = static_cast<unsigned>(kWarps * kWarpThreads)}};
}

// The gate: one warp per row, as many rows to a block as leave every multiprocessor some blocks,
// and as fit into the shared memory that every GPU has.
inline LaunchShape gate_shape(int64_t rows, int64_t num_experts, int64_t num_groups) {
    constexpr int64_t kMaxRows = 4, kSharedBytes = 48 << 10;
    const int64_t row_bytes = 4 * (2 * num_experts + num_groups);
    const int64_t fit = std::clamp<int64_t>(kSharedBytes / row_bytes, 1, kMaxRows);
    const int64_t per_block = rows >= 512 ? fit : 1;
    return {.grid = {.x = static_cast<unsigned>((rows + per_block - 1) / per_block)},
            .block = {.x = static_cast<unsigned>(per_block) * kWarpThreads},
            .shared_bytes = static_cast<size_t>(per_block * row_bytes)};
}

}  // namespace ferry
