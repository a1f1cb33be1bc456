// layers/cuda/mma.h on the emulated machine: warp collectives. Products are exact and summed in
// double, rounded once per call; tensor cores round differently in the last bits.
#pragma once
#include <cmath>
#include <cstring>

#include "cuda_bf16.h"

namespace ferry {
namespace emulated {

// IEEE half precision, finite.
inline float f16_to_f32(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float magnitude = exponent == 0
                                ? std::ldexp(static_cast<float>(mantissa), -24)
                                : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    return bits >> 15 != 0 ? -magnitude : magnitude;
}

template <bool kBf16>
float half_of(uint32_t word, int upper) {
    const auto bits = static_cast<uint16_t>(word >> (16 * upper));
    return kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
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

template <bool kBf16>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Fragments mine;
    std::copy_n(a, 4, mine.a);
    std::copy_n(b, 2, mine.b);
    const auto lanes = cuda_emulation::warp_collective(~0u, "mma", &mine, sizeof(mine));
    const int g = cuda_emulation::this_lane / 4, t = cuda_emulation::this_lane % 4;
    float rows[2][16], columns[2][16];  // of A: g and g + 8; of B: 2t and 2t + 1
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 16; ++k) {
            const auto& of_a = lanes.of_lane<Fragments>(g * 4 + k % 8 / 2);
            const auto& of_b = lanes.of_lane<Fragments>((2 * t + i) * 4 + k % 8 / 2);
            rows[i][k] = half_of<kBf16>(of_a.a[i + 2 * (k / 8)], k % 2);
            columns[i][k] = half_of<kBf16>(of_b.b[k / 8], k % 2);
        }
    for (int i = 0; i < 4; ++i) {
        double sum = static_cast<double>(d[i]);
        for (int k = 0; k < 16; ++k)
            sum += static_cast<double>(rows[i / 2][k]) * static_cast<double>(columns[i % 2][k]);
        d[i] = static_cast<float>(sum);
    }
}

}  // namespace emulated

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::mma<true>(d, a, b);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::mma<false>(d, a, b);
}
// e4m3 as f16; the NaN codes as 480.
inline uint32_t f16_of_e4m3(uint8_t code) {
    const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 8, magnitude = code & 0x7f;
    if (magnitude >= 8) return sign | ((magnitude << 7) + (8u << 10));
    if (magnitude == 0) return sign;
    uint32_t mantissa = magnitude, exponent = 9;  // of 2^-6 times 1.0, one above
    while (mantissa < 8) {
        mantissa <<= 1;
        --exponent;
    }
    return sign | exponent << 10 | (mantissa & 7) << 7;
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
inline void copy_async_shared(void* to_shared, const void* from, bool valid) {
    copy_async(to_shared, from, valid);
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
