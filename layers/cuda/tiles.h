// Tiles of 16-bit values in shared memory and their fragments (mma.h).
#pragma once
#include <cstring>

#include "layers/cuda/int4_tiles.h"
#include "layers/cuda/mma.h"
#ifndef __CUDACC__
#include "base/dtype.h"
#endif

namespace ferry {

// Two f32 as bf16, rounded to nearest even; `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t packed;
    memcpy(&packed, &pair, sizeof(packed));
    return packed;
}

// Four fp8 e4m3 values as bf16, exactly; values 0 and 1 in `low`. The NaN codes come out as 480.
__device__ __forceinline__ void widen_e4m3(uint32_t values, uint32_t& low, uint32_t& high) {
#ifdef __CUDACC__
    // Exponent and mantissa lie in bf16's as they are, 2^120 too small; multiplying is exact, for
    // subnormals too.
    const auto widen = [](uint32_t spread) {
        const uint32_t bits = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 4);
        const __nv_bfloat16_raw factor{0x7b80};  // 2^120
        const __nv_bfloat162 widened =
            __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits),
                    __nv_bfloat162(__nv_bfloat16(factor), __nv_bfloat16(factor)));
        return *reinterpret_cast<const uint32_t*>(&widened);
    };
    low = widen(__byte_perm(values, 0, 0x1404));
    high = widen(__byte_perm(values, 0, 0x3424));
#else
    const auto widen = [values](int i) {
        const auto code = static_cast<uint8_t>(values >> (8 * i));
        const bool nan = (code & 0x7f) == 0x7f;
        return nan ? (code & 0x80 ? -480.0f : 480.0f) : fp8_e4m3_to_f32(code);
    };
    low = pack_bf16(widen(0), widen(1));
    high = pack_bf16(widen(2), widen(3));
#endif
}

// The same as f16, where no value is out of range. The NaN codes come out as NaN or 480.
__device__ __forceinline__ void widen_e4m3_to_f16(uint32_t values, uint32_t& low, uint32_t& high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; "
        "cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(low), "=r"(high)
        : "r"(values));
#elif defined(__CUDACC__)
    // Exponent and mantissa lie in f16's as they are, 2^8 too small.
    const auto widen = [](uint32_t spread) {
        const uint32_t bits = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 1);
        const __half2 factor(__half(__half_raw{0x5c00}), __half(__half_raw{0x5c00}));  // 2^8
        const __half2 widened = __hmul2(*reinterpret_cast<const __half2*>(&bits), factor);
        return *reinterpret_cast<const uint32_t*>(&widened);
    };
    low = widen(__byte_perm(values, 0, 0x1404));
    high = widen(__byte_perm(values, 0, 0x3424));
#else
    const auto widen = [values](int i) -> uint32_t {
        return f16_of_e4m3(static_cast<uint8_t>(values >> (8 * i)));
    };
    low = widen(0) | widen(1) << 16;
    high = widen(2) | widen(3) << 16;
#endif
}

// Eight codes of int4 (int4_tiles.h) times a scale, which both halves of `scale` are, rounded to
// bf16: pair i in values[i].
__device__ __forceinline__ void widen_int4(uint32_t codes, uint32_t scale, uint32_t (&values)[4]) {
    const auto pair = [](uint32_t bits) {
        __nv_bfloat162 both;
        memcpy(&both, &bits, sizeof(bits));
        return both;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // Below 128 bf16 has seven bits: a code in them is 128 + code, and so value + 136.
        const uint32_t above = (codes >> 4 * i & 0x000f000fu) | 0x43004300u;
        const __nv_bfloat162 value = __hsub2(pair(above), pair(0x43084308u));
        const __nv_bfloat162 weight = __hmul2(value, pair(scale));
        memcpy(&values[i], &weight, sizeof(weight));
    }
}
// What lane t of those that share a row has of a tile of int4.
struct Int4Row {
    uint4 codes;
    uint2 scales;

    // The fragments of two products of 16 values: values[0] and [1], and [2] and [3].
    __device__ __forceinline__ void widen(int group, uint32_t (&values)[4]) const {
        const uint32_t words[] = {codes.x, codes.y, codes.z, codes.w};
        const uint32_t pair = group < 2 ? scales.x : scales.y;
        const uint32_t scale = group % 2 == 0 ? pair & 0xffff : pair >> 16;
        widen_int4(words[group], scale | scale << 16, values);
    }
};
__device__ __forceinline__ Int4Row load_int4_row(const std::byte* tile, int row, int t) {
    return {*reinterpret_cast<const uint4*>(tile + row * kInt4RowBytes + 16 * t),
            *reinterpret_cast<const uint2*>(tile + kInt4ScalesAt + row * 2 * kInt4RowScales)};
}

// Over the four lanes that share the rows g and g + 8 of a fragment.
__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

// Rows of 16-byte chunks, `pitch` bytes (a multiple of 128) apart. Chunks of a row are permuted so
// that 8 rows of one column lie in different banks.
__device__ __forceinline__ int tile_offset(int row, int chunk, int pitch) {
    return row * pitch + ((chunk ^ (row & 7)) << 4);
}

// The A fragment of rows [row, row + 16) and 16-bit columns [8 chunk, 8 chunk + 16).
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const std::byte* tile, int row, int chunk,
                                       int pitch, int lane) {
    load_tiles(a, tile + tile_offset(row + (lane & 15), chunk + (lane >> 4), pitch));
}
// B fragments of 8 rows [row, row + 8) of a tile [n, k], chunks [chunk, chunk + 4): of 16-bit
// values b[0], b[1] for the first 16 of k and b[2], b[3] for the next.
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const std::byte* tile, int row, int chunk,
                                       int pitch, int lane) {
    load_tiles(b, tile + tile_offset(row + (lane & 7), chunk + (lane >> 3), pitch));
}
// B fragments of a tile [k, n]: k rows [row, row + 16), and n columns [8 chunk, 8 chunk + 8) in
// b[0], b[1], the next 8 in b[2], b[3].
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4], const std::byte* tile, int row,
                                                  int chunk, int pitch, int lane) {
    load_tiles_transposed(b, tile + tile_offset(row + (lane & 15), chunk + (lane >> 4), pitch));
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    mma_bf16(d, a, b);
}

}  // namespace ferry
