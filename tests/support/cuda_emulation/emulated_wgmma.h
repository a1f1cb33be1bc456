// layers/cuda/wgmma.h on the emulated machine. A product is done when it is asked for, warp by
// warp; sums as emulated_mma.h's.
#pragma once
#include <array>

#include "base/dtype.h"
#include "emulated_mma.h"

namespace ferry {

struct SharedTile {
    const std::byte* begin = nullptr;
    int panel_bytes = 0;

    SharedTile plus(int bytes) const { return {begin + bytes, panel_bytes}; }
};

inline SharedTile tile_by_rows(const std::byte* panel) {
    if (reinterpret_cast<uintptr_t>(panel) % 1024 != 0) std::abort();
    return {panel, 0};
}
inline SharedTile tile_by_columns(const std::byte* panel, int panel_bytes) {
    if (reinterpret_cast<uintptr_t>(panel) % 1024 != 0 || panel_bytes % 1024 != 0) std::abort();
    return {panel, panel_bytes};
}

namespace emulated {

// The swizzle permutes address bits, whatever was added to the beginning.
inline const std::byte* swizzled(const std::byte* at) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    return reinterpret_cast<const std::byte*>(address ^ (address >> 7 & 7) << 4);
}
template <typename Value>
Value value_of(const SharedTile& tile, int row, int k) {
    return *reinterpret_cast<const Value*>(
        swizzled(tile.begin + row * 128 + k * static_cast<int>(sizeof(Value))));
}
inline float bf16_of(const SharedTile& tile, bool by_columns, int row, int k) {
    return bf16_to_f32(
        by_columns ? value_of<uint16_t>({tile.begin + row / 64 * tile.panel_bytes, 0}, k, row % 64)
                   : value_of<uint16_t>(tile, row, k));
}

// d of N = sums / 2 columns, of `depth` of k; a(i, k) for i = 0, 1: rows g and g + 8 of the warp.
template <size_t kSums, typename A, typename B>
void multiply(float (&d)[kSums], int depth, bool accumulate, A&& a, B&& b) {
    const int t = cuda_emulation::this_lane % 4;
    for (size_t j = 0; j < kSums; ++j) {
        const int column = static_cast<int>(j / 4) * 8 + 2 * t + static_cast<int>(j % 2);
        double sum = accumulate ? static_cast<double>(d[j]) : 0;
        for (int k = 0; k < depth; ++k)
            sum += static_cast<double>(a(static_cast<int>(j / 2 % 2), k)) *
                   static_cast<double>(b(column, k));
        d[j] = static_cast<float>(sum);
    }
}
// The first row of A that the lane has.
inline int wgmma_row() {
    return static_cast<int>(threadIdx.x / 32 % 4) * 16 + cuda_emulation::this_lane / 4;
}

}  // namespace emulated

template <int kColumns, bool kByColumns = false>
void wgmma_bf16(float (&d)[kColumns / 2], SharedTile a, SharedTile b, bool accumulate = true) {
    const int row = emulated::wgmma_row();
    cuda_emulation::warp_collective(~0u, "wgmma", nullptr, 0);
    emulated::multiply(
        d, 16, accumulate,
        [&](int i, int k) { return emulated::bf16_of(a, false, row + 8 * i, k); },
        [&](int n, int k) { return emulated::bf16_of(b, kByColumns, n, k); });
}
template <int kColumns, bool kByColumns = false>
void wgmma_bf16(float (&d)[kColumns / 2], const uint32_t (&a)[4], SharedTile b,
                bool accumulate = true) {
    const auto lanes = cuda_emulation::warp_collective(~0u, "wgmma", a, sizeof(a));
    const int g = cuda_emulation::this_lane / 4;
    float rows[2][16];
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 16; ++k) {
            const auto& of_a = lanes.of_lane<std::array<uint32_t, 4>>(g * 4 + k % 8 / 2);
            rows[i][k] = emulated::half_of<true>(of_a[static_cast<size_t>(i + 2 * (k / 8))], k % 2);
        }
    emulated::multiply(
        d, 16, accumulate, [&](int i, int k) { return rows[i][k]; },
        [&](int n, int k) { return emulated::bf16_of(b, kByColumns, n, k); });
}
template <int kColumns>
void wgmma_e4m3(float (&d)[kColumns / 2], SharedTile a, SharedTile b, bool accumulate = true) {
    const int row = emulated::wgmma_row();
    cuda_emulation::warp_collective(~0u, "wgmma", nullptr, 0);
    const auto value = [](const SharedTile& tile, int i, int k) {
        return fp8_e4m3_to_f32(emulated::value_of<uint8_t>(tile, i, k));
    };
    emulated::multiply(
        d, 32, accumulate, [&](int i, int k) { return value(a, row + 8 * i, k); },
        [&](int n, int k) { return value(b, n, k); });
}

inline void wgmma_fence() {}
inline void wgmma_commit() {}
// Nobody writes what a product of the warp reads before all its lanes have read it.
template <int kGroupsLeft>
void wgmma_wait() {
    cuda_emulation::warp_collective(~0u, "wgmma_wait", nullptr, 0);
}
inline void fence_async_proxy() {}

}  // namespace ferry
