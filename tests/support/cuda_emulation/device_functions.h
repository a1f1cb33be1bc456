// Functions that kernels call. Included by cuda_runtime.h.
#pragma once
#include <algorithm>
#include <bit>

constexpr int warpSize = 32;

using std::max;
using std::min;

// ---- Barriers and warps
inline void __syncthreads() {
    cuda_emulation::barrier_sync(0, 0, "__syncthreads");
}
inline int __syncthreads_count(int predicate) {
    return cuda_emulation::barrier_sync(0, 0, "__syncthreads_count", predicate != 0);
}
inline int __syncthreads_or(int predicate) {
    return cuda_emulation::barrier_sync(0, 0, "__syncthreads_or", predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate) {
    return cuda_emulation::barrier_sync(0, 0, "__syncthreads_and", predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_emulation::warp_collective(mask, "__syncwarp", nullptr, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {
    cuda_emulation::give_way();
}

namespace cuda_emulation {
// A lane outside the segment, or one that does not exist, leaves the own value.
template <typename T>
T shuffle(unsigned mask, const char* operation, T value, int source, int width, bool inside) {
    const int base = this_lane / width * width;
    const Payloads all = warp_collective(mask, operation, &value, sizeof(T));
    if (!inside || source < 0 || source >= width) return value;
    return all.of_lane<T>(base + source);
}
}  // namespace cuda_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return cuda_emulation::shuffle(mask, "__shfl_sync", value, lane & (width - 1), width, true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    const int lane = cuda_emulation::this_lane & (width - 1);
    return cuda_emulation::shuffle(mask, "__shfl_xor_sync", value, lane ^ lane_mask, width, true);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = (cuda_emulation::this_lane & (width - 1)) - static_cast<int>(delta);
    return cuda_emulation::shuffle(mask, "__shfl_up_sync", value, source, width, source >= 0);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = (cuda_emulation::this_lane & (width - 1)) + static_cast<int>(delta);
    return cuda_emulation::shuffle(mask, "__shfl_down_sync", value, source, width, source < width);
}

namespace cuda_emulation {
template <typename T, typename Join>
T reduce_lanes(unsigned mask, const char* operation, T value, Join join) {
    const unsigned lanes = mask & existing_lanes();
    const Payloads all = warp_collective(mask, operation, &value, sizeof(T));
    bool first = true;
    T result = value;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((lanes >> lane & 1) == 0) continue;
        const T other = all.of_lane<T>(lane);
        result = first ? other : join(result, other);
        first = false;
    }
    return result;
}
}  // namespace cuda_emulation

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const unsigned bit = predicate ? 1u << cuda_emulation::this_lane : 0u;
    return cuda_emulation::reduce_lanes(mask, "__ballot_sync", bit,
                                        [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) {
    return cuda_emulation::reduce_lanes(mask, "__any_sync", predicate != 0,
                                        [](bool a, bool b) { return a || b; });
}
inline int __all_sync(unsigned mask, int predicate) {
    return cuda_emulation::reduce_lanes(mask, "__all_sync", predicate != 0,
                                        [](bool a, bool b) { return a && b; });
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
    return cuda_emulation::reduce_lanes(mask, "__reduce_add_sync", value,
                                        [](T a, T b) { return static_cast<T>(a + b); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
    return cuda_emulation::reduce_lanes(mask, "__reduce_max_sync", value,
                                        [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
    return cuda_emulation::reduce_lanes(mask, "__reduce_min_sync", value,
                                        [](T a, T b) { return a < b ? a : b; });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
    const unsigned lanes = mask & cuda_emulation::existing_lanes();
    const cuda_emulation::Payloads all =
        cuda_emulation::warp_collective(mask, "__match_any_sync", &value, sizeof(T));
    unsigned same = 0;
    for (int lane = 0; lane < cuda_emulation::kWarpSize; ++lane)
        if ((lanes >> lane & 1) != 0 && all.template of_lane<T>(lane) == value) same |= 1u << lane;
    return same;
}

// ---- Atomics: threads give way nowhere in between
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = static_cast<T>(old + value);
    return old;
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = static_cast<T>(old - value);
    return old;
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = std::max(old, value);
    return old;
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = std::min(old, value);
    return old;
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = old | value;
    return old;
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
    const T old = *address;
    *address = value;
    return old;
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    const unsigned old = *address;
    *address = old >= limit ? 0 : old + 1;
    return old;
}

// ---- Memory
template <typename T>
T __ldg(const T* address) {
    return *address;
}
template <typename T>
T __ldcg(const T* address) {
    return *address;
}
template <typename T>
T __ldcs(const T* address) {
    return *address;
}
template <typename T>
void __stcs(T* address, T value) {
    *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
    *address = value;
}

// ---- Arithmetic
inline float __expf(float x) {
    return std::exp(x);
}
inline float __logf(float x) {
    return std::log(x);
}
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __frcp_rn(float a) {
    return 1 / a;
}
inline float __fsqrt_rn(float a) {
    return std::sqrt(a);
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
inline int __float2int_rn(float x) {
    return static_cast<int>(std::nearbyint(x));
}
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __ffs(int x) {
    return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline int __clz(int x) {
    return std::countl_zero(static_cast<unsigned>(x));
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
