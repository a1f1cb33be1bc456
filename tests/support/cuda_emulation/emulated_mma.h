// layers/cuda/mma.h on the emulated machine: warp collectives. Products are exact and summed in
// double, rounded once per call; tensor cores round differently in the last bits.
#pragma once
#include "cuda_bf16.h"

namespace ferry {
namespace emulated {

inline float half_of(uint32_t word, int upper) {
    return bf16_to_f32(static_cast<uint16_t>(word >> (16 * upper)));
}

struct Fragments {
    uint32_t a[4], b[2];
};

template <int kTiles>
void load_tiles(uint32_t (&to)[kTiles], const void* row, bool transposed, const char* name) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
    const auto lanes = cuda_emulation::warp_collective(~0u, name, &row, sizeof(row));
    const int g = cuda_emulation::this_lane / 4, t = cuda_emulation::this_lane % 4;
    for (int tile = 0; tile < kTiles; ++tile) {
        const auto value = [&](int i, int j) -> uint32_t {
            const auto* values = lanes.of_lane<const uint16_t*>(8 * tile + i);
            return values[j];
        };
        to[tile] = transposed ? value(2 * t, g) | value(2 * t + 1, g) << 16
                              : value(g, 2 * t) | value(g, 2 * t + 1) << 16;
    }
    // Nobody writes the tiles again before all have read them.
    cuda_emulation::warp_collective(~0u, "ldmatrix", nullptr, 0);
}

}  // namespace emulated

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::Fragments mine;
    std::copy_n(a, 4, mine.a);
    std::copy_n(b, 2, mine.b);
    const auto lanes = cuda_emulation::warp_collective(~0u, "mma", &mine, sizeof(mine));
    const int g = cuda_emulation::this_lane / 4, t = cuda_emulation::this_lane % 4;
    float rows[2][16], columns[2][16];  // of A: g and g + 8; of B: 2t and 2t + 1
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 16; ++k) {
            const auto& of_a = lanes.of_lane<emulated::Fragments>(g * 4 + k % 8 / 2);
            const auto& of_b = lanes.of_lane<emulated::Fragments>((2 * t + i) * 4 + k % 8 / 2);
            rows[i][k] = emulated::half_of(of_a.a[i + 2 * (k / 8)], k % 2);
            columns[i][k] = emulated::half_of(of_b.b[k / 8], k % 2);
        }
    for (int i = 0; i < 4; ++i) {
        double sum = static_cast<double>(d[i]);
        for (int k = 0; k < 16; ++k)
            sum += static_cast<double>(rows[i / 2][k]) * static_cast<double>(columns[i % 2][k]);
        d[i] = static_cast<float>(sum);
    }
}

inline void load_tiles(uint32_t (&to)[4], const void* row) {
    emulated::load_tiles(to, row, false, "ldmatrix.x4");
}
inline void load_tiles(uint32_t (&to)[2], const void* row) {
    emulated::load_tiles(to, row, false, "ldmatrix.x2");
}
inline void load_tiles_transposed(uint32_t (&to)[4], const void* row) {
    emulated::load_tiles(to, row, true, "ldmatrix.x4.trans");
}
inline void load_tiles_transposed(uint32_t (&to)[2], const void* row) {
    emulated::load_tiles(to, row, true, "ldmatrix.x2.trans");
}

inline void copy_async(void* to_shared, const void* from, bool valid = true) {
    if (reinterpret_cast<uintptr_t>(to_shared) % 16 != 0 ||
        (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
        std::abort();
    cuda_emulation::async_copy(to_shared, from, valid ? 16 : 0, 16);
}
inline void copy_word_async(void* to_shared, const void* from, bool valid = true) {
    if (reinterpret_cast<uintptr_t>(to_shared) % 4 != 0 ||
        (valid && reinterpret_cast<uintptr_t>(from) % 4 != 0))
        std::abort();
    cuda_emulation::async_copy(to_shared, from, valid ? 4 : 0, 4);
}
inline void commit_copies() {
    cuda_emulation::async_copy_commit();
}
template <int kGroupsLeft>
void wait_for_copies() {
    cuda_emulation::async_copy_wait(kGroupsLeft);
}

inline void named_barrier(int id, int num_threads) {
    cuda_emulation::barrier_sync(id, num_threads, "named_barrier");
}
inline void named_barrier_arrive(int id, int num_threads) {
    cuda_emulation::barrier_arrive(id, num_threads);
}

}  // namespace ferry
