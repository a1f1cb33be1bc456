#include "comm/row_codec.h"

#include <cstring>

#include "base/check.h"

// Highway compiles this file once per instruction set and picks at run time. Tails of rows take the
// scalar definitions, which give the same bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/row_codec.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;

constexpr int64_t kBlock = 128;
constexpr int64_t kSumBlock = 64;

inline uint32_t to_bits(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
inline float to_float(uint32_t x) {
    return __builtin_bit_cast(float, x);
}

// The upper half of each f32, to nearest even; NaN stays NaN.
HWY_INLINE hn::Vec<DI> RoundBf16(hn::Vec<DF> x) {
    const DU du;
    const DI di;
    const auto bits = hn::BitCast(du, x);
    const auto upper = hn::ShiftRight<16>(bits);
    const auto rounded =
        hn::ShiftRight<16>(bits + hn::Set(du, 0x7fffu) + hn::And(upper, hn::Set(du, 1u)));
    const auto magnitude = hn::BitCast(di, hn::And(bits, hn::Set(du, 0x7fffffffu)));
    const auto quiet_nan = hn::Or(upper, hn::Set(du, 0x40u));
    return hn::IfThenElse(magnitude > hn::Set(di, 0x7f800000), hn::BitCast(di, quiet_nan),
                          hn::BitCast(di, rounded));
}

// Rows are read once and mostly from memory, where the processor's own read-ahead ends with every
// page of 4 KiB: asked for this far ahead of their use.
constexpr int64_t kAheadBytes = 1024;

template <class T>
HWY_INLINE void FetchAhead(const T* row, int64_t num) {
    const auto* from = reinterpret_cast<const char*>(row) + kAheadBytes;
    for (int64_t i = 0; i < num * static_cast<int64_t>(sizeof(T)); i += 64) hwy::Prefetch(from + i);
}

template <bool kStream>
void EncodeBf16(const float* x, int64_t dim, uint16_t* out) {
    const DF df;
    const hn::Rebind<uint16_t, DI> half;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    int64_t i = 0;
    while (i + lanes <= dim) {
        const int64_t end = dim - i < kBlock ? dim : i + kBlock;
        FetchAhead(x + i, end - i);
        for (; i + lanes <= end; i += lanes) {
            const auto coded = hn::DemoteTo(half, RoundBf16(hn::LoadU(df, x + i)));
            if constexpr (kStream)
                hn::Stream(coded, half, out + i);
            else
                hn::StoreU(coded, half, out + i);
        }
    }
    for (; i < dim; ++i) out[i] = f32_to_bf16(x[i]);
    if constexpr (kStream) hwy::FlushStream();
}

template <bool kStream>
void DecodeBf16(const uint16_t* in, int64_t dim, float* out) {
    const DF df;
    const DI di;
    const hn::Rebind<uint16_t, DI> half;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    int64_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
        const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(di, hn::LoadU(half, in + i)));
        if constexpr (kStream)
            hn::Stream(hn::BitCast(df, bits), df, out + i);
        else
            hn::StoreU(hn::BitCast(df, bits), df, out + i);
    }
    for (; i < dim; ++i) out[i] = bf16_to_f32(in[i]);
    if constexpr (kStream) hwy::FlushStream();
}

void EncodeBf16Row(const float* x, int64_t dim, uint16_t* out, bool stream) {
    if (stream)
        EncodeBf16<true>(x, dim, out);
    else
        EncodeBf16<false>(x, dim, out);
}
void DecodeBf16Row(const uint16_t* in, int64_t dim, float* out, bool stream) {
    if (stream)
        DecodeBf16<true>(in, dim, out);
    else
        DecodeBf16<false>(in, dim, out);
}

void EncodeFp8Block(const float* x, int64_t num, uint8_t* out, float* scale) {
    const DF df;
    const DI di;
    const hn::Rebind<uint8_t, DI> quarter;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    const auto magnitude_mask = hn::Set(di, 0x7fffffff);
    auto max_bits = hn::Set(di, static_cast<int32_t>(to_bits(1e-4f)));
    int64_t i = 0;
    for (; i + lanes <= num; i += lanes)  // magnitudes order as integers
        max_bits =
            hn::Max(max_bits, hn::And(hn::BitCast(di, hn::LoadU(df, x + i)), magnitude_mask));
    int32_t largest = hn::GetLane(hn::MaxOfLanes(di, max_bits));
    for (; i < num; ++i) {
        const auto bits = static_cast<int32_t>(to_bits(x[i]) & 0x7fffffffu);
        largest = bits > largest ? bits : largest;
    }
    const float s = to_float(static_cast<uint32_t>(largest)) / kFp8Max;
    *scale = s;

    const auto divisor = hn::Set(df, s);
    for (i = 0; i + lanes <= num; i += lanes) {
        const auto bits = hn::BitCast(di, hn::LoadU(df, x + i) / divisor);
        const auto magnitude = hn::And(bits, magnitude_mask);
        // As f32_to_fp8_e4m3 (base/dtype.h), without branches.
        const auto shifted = hn::BitCast(df, magnitude) + hn::Set(df, 0x1p14f);
        const auto subnormal = hn::And(hn::BitCast(di, shifted), hn::Set(di, 0xf));
        const auto odd = hn::And(hn::ShiftRight<20>(magnitude), hn::Set(di, 1));
        const auto normal =
            hn::ShiftRight<20>(magnitude + hn::Set(di, 0x7ffff) + odd) - hn::Set(di, 120 << 3);
        auto code = hn::IfThenElse(magnitude < hn::Set(di, 0x3c800000), subnormal, normal);
        code = hn::IfThenElse(magnitude < hn::Set(di, 0x43e00000), code, hn::Set(di, 0x7e));
        code = hn::IfThenElse(magnitude > hn::Set(di, 0x7f800000), hn::Set(di, 0x7f), code);
        const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(di, 0x80));
        hn::StoreU(hn::DemoteTo(quarter, hn::Or(code, sign)), quarter, out + i);
    }
    for (; i < num; ++i) out[i] = f32_to_fp8_e4m3(x[i] / s);
}

void EncodeFp8(const float* x, int64_t dim, uint8_t* out, float* scales) {
    for (int64_t i = 0; i < dim; i += kBlock)
        EncodeFp8Block(x + i, dim - i < kBlock ? dim - i : kBlock, out + i, scales + i / kBlock);
}

void DecodeFp8Block(const uint8_t* in, int64_t num, float scale, float* out) {
    const DF df;
    const DI di;
    const hn::Rebind<uint8_t, DI> quarter;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    int64_t i = 0;
    for (; i + lanes <= num; i += lanes) {
        const auto code = hn::PromoteTo(di, hn::LoadU(quarter, in + i));
        const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(di, 0x80)));
        const auto magnitude = hn::And(code, hn::Set(di, 0x7f));
        const auto normal = hn::ShiftLeft<20>(magnitude + hn::Set(di, 120 << 3));
        const auto subnormal = hn::BitCast(di, hn::ConvertTo(df, magnitude) * hn::Set(df, 0x1p-9f));
        auto bits = hn::IfThenElse(magnitude < hn::Set(di, 8), subnormal, normal);
        bits = hn::IfThenElse(magnitude == hn::Set(di, 0x7f), hn::Set(di, 0x7fc00000), bits);
        hn::StoreU(hn::BitCast(df, hn::Or(bits, sign)) * hn::Set(df, scale), df, out + i);
    }
    for (; i < num; ++i) out[i] = fp8_e4m3_to_f32(in[i]) * scale;
}

void DecodeFp8(const uint8_t* in, const float* scales, int64_t dim, float* out) {
    for (int64_t i = 0; i < dim; i += kBlock)
        DecodeFp8Block(in + i, dim - i < kBlock ? dim - i : kBlock, scales[i / kBlock], out + i);
}

HWY_INLINE float ToFloat(float x) {
    return x;
}
HWY_INLINE float ToFloat(uint16_t bf16) {
    return to_float(static_cast<uint32_t>(bf16) << 16);
}

// A block of the sum stays in the first-level cache while all rows are added to it. Small blocks,
// so that all rows are fetched at once: half the time of blocks of 512.
template <class T>
void Sum(const WeightedRow* rows, size_t num_rows, int64_t dim, float* __restrict out) {
    for (int64_t begin = 0; begin < dim; begin += kSumBlock) {
        const int64_t num = dim - begin < kSumBlock ? dim - begin : kSumBlock;
        float* __restrict sum = out + begin;
        for (size_t k = 0; k < num_rows; ++k) {
            const T* __restrict row = reinterpret_cast<const T*>(rows[k].row) + begin;
            const float weight = rows[k].weight;
            FetchAhead(row, num);
            if (k == 0)
                for (int64_t i = 0; i < num; ++i) sum[i] = weight * ToFloat(row[i]);
            else
                for (int64_t i = 0; i < num; ++i) sum[i] = sum[i] + weight * ToFloat(row[i]);
        }
    }
}
void SumF32(const WeightedRow* rows, size_t num_rows, int64_t dim, float* out) {
    Sum<float>(rows, num_rows, dim, out);
}
void SumBf16(const WeightedRow* rows, size_t num_rows, int64_t dim, float* out) {
    Sum<uint16_t>(rows, num_rows, dim, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(EncodeBf16Row);
HWY_EXPORT(EncodeFp8);
HWY_EXPORT(DecodeBf16Row);
HWY_EXPORT(DecodeFp8);
HWY_EXPORT(SumF32);
HWY_EXPORT(SumBf16);

namespace {

bool aligned(const void* address) {  // as streamed stores of the widest vectors need
    return reinterpret_cast<uintptr_t>(address) % 64 == 0;
}

}  // namespace

void encode_row(DType dtype, const float* x, int64_t dim, std::byte* out, float* scales,
                Stores stores) {
    const bool stream = stores == Stores::streamed && aligned(out);
    switch (dtype) {
        case DType::f32:
            std::memcpy(out, x, static_cast<size_t>(dim) * sizeof(float));
            return;
        case DType::bf16:
            return HWY_DYNAMIC_DISPATCH(EncodeBf16Row)(x, dim, reinterpret_cast<uint16_t*>(out),
                                                       stream);
        case DType::fp8_e4m3:
            return HWY_DYNAMIC_DISPATCH(EncodeFp8)(x, dim, reinterpret_cast<uint8_t*>(out), scales);
        default:
            FERRY_CHECK(false, "rows of {} do not travel", to_string(dtype));
    }
}

void decode_row(DType dtype, const std::byte* in, const float* scales, int64_t dim, float* out,
                Stores stores) {
    const bool stream = stores == Stores::streamed && aligned(out);
    switch (dtype) {
        case DType::f32:
            std::memcpy(out, in, static_cast<size_t>(dim) * sizeof(float));
            return;
        case DType::bf16:
            return HWY_DYNAMIC_DISPATCH(DecodeBf16Row)(reinterpret_cast<const uint16_t*>(in), dim,
                                                       out, stream);
        case DType::fp8_e4m3:
            return HWY_DYNAMIC_DISPATCH(DecodeFp8)(reinterpret_cast<const uint8_t*>(in), scales,
                                                   dim, out);
        default:
            FERRY_CHECK(false, "rows of {} do not travel", to_string(dtype));
    }
}

void sum_rows(DType dtype, std::span<const WeightedRow> rows, int64_t dim, float* out) {
    if (dtype == DType::f32)
        return HWY_DYNAMIC_DISPATCH(SumF32)(rows.data(), rows.size(), dim, out);
    FERRY_CHECK(dtype == DType::bf16, "rows of {} do not come back", to_string(dtype));
    HWY_DYNAMIC_DISPATCH(SumBf16)(rows.data(), rows.size(), dim, out);
}

}  // namespace ferry
#endif
