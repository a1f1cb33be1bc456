// Values that a thread moves at once: one float, or four in a 16-byte access.
#pragma once
#include "base/cuda_api.h"
#include "base/tensor.h"
#include "layers/cuda/geometry.h"

namespace ferry {

template <int kWidth>
struct __align__(4 * kWidth) FloatVector {
    float values[kWidth];
};

template <int kWidth>
__device__ __forceinline__ FloatVector<kWidth> load(const float* from) {
    return *reinterpret_cast<const FloatVector<kWidth>*>(from);
}
// Widened; bf16 is the upper half of an f32.
template <int kWidth>
__device__ __forceinline__ FloatVector<kWidth> load(const uint16_t* from) {
    struct __align__(2 * kWidth) Halves {
        uint16_t values[kWidth];
    };
    const Halves halves = *reinterpret_cast<const Halves*>(from);
    FloatVector<kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
        result.values[i] = __uint_as_float(static_cast<unsigned>(halves.values[i]) << 16);
    return result;
}
template <int kWidth>
__device__ __forceinline__ void store(const FloatVector<kWidth>& value, float* to) {
    *reinterpret_cast<FloatVector<kWidth>*>(to) = value;
}
// Rounded to bf16, to nearest even.
template <int kWidth>
__device__ __forceinline__ void store(const FloatVector<kWidth>& value, uint16_t* to) {
    struct __align__(2 * kWidth) Halves {
        uint16_t values[kWidth];
    };
    Halves halves;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
        halves.values[i] = __bfloat16_as_ushort(__float2bfloat16_rn(value.values[i]));
    *reinterpret_cast<Halves*>(to) = halves;
}

// Whether rows of `columns` values can be taken four at a time.
inline bool takes_vectors(int64_t columns, std::initializer_list<Tensor> tensors) {
    if (columns % kFloatsPerVector != 0) return false;
    for (const Tensor& tensor : tensors) {
        const int64_t bytes = kFloatsPerVector * size_bytes(tensor.dtype());
        if (reinterpret_cast<uintptr_t>(tensor.data()) % static_cast<uintptr_t>(bytes) != 0 ||
            tensor.row_stride() % kFloatsPerVector != 0)
            return false;
    }
    return true;
}

// body(std::integral_constant<int, width>) with 4 or 1.
template <typename Body>
void with_width(bool vectors, Body&& body) {
    if (vectors)
        body(std::integral_constant<int, static_cast<int>(kFloatsPerVector)>());
    else
        body(std::integral_constant<int, 1>());
}

}  // namespace ferry
