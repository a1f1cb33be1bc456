// fp8 activations and the fixed-order sum of row-parallel parts.
#include <algorithm>
#include <bit>
#include <cmath>

#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/row_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/quantise.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// fp8_e4m3_to_f32(f32_to_fp8_e4m3(x)) of base/dtype.h, in f32 throughout.
HWY_INLINE FloatVector round_to_fp8(FloatVector x) {
    const Floats d;
    const hn::RebindToUnsigned<Floats> du;
    const FloatVector magnitude = hn::Abs(x);
    const auto bits = hn::BitCast(du, magnitude);
    const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1u));
    const auto rounded =
        hn::And(hn::Add(hn::Add(bits, hn::Set(du, 0x7ffffu)), odd), hn::Set(du, 0xfff00000u));
    // Subnormals are multiples of 2^-9, which is what the last bit of 2^14 is worth.
    const FloatVector shift = hn::Set(d, 0x1p14f);
    const FloatVector subnormal = hn::Sub(hn::Add(magnitude, shift), shift);
    const FloatVector finite =
        hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x1p-6f)), subnormal, hn::BitCast(d, rounded));
    const FloatVector largest = hn::Set(d, kFp8Max);
    const FloatVector bounded = hn::IfThenElse(hn::Ge(magnitude, largest), largest, finite);
    return hn::CopySign(hn::IfThenElse(hn::Ne(x, x), x, bounded), x);
}

// One block of at most 128 values; returns its scale.
float quantise_block(const float* x, int64_t count, bool power_of_two_scale, float* q) {
    const Floats d;
    FloatVector maxima = hn::Zero(d);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) maxima = hn::Max(hn::Abs(hn::LoadU(d, x + i)), maxima);
    float lanes[kLanes];
    hn::StoreU(maxima, d, lanes);
    float largest = std::max(1e-4f, *std::max_element(lanes, lanes + kLanes));
    for (int64_t j = i; j < count; ++j) largest = std::max(largest, std::abs(x[j]));

    float scale = largest / kFp8Max;
    if (power_of_two_scale) {
        const uint32_t bits = std::bit_cast<uint32_t>(scale);
        scale = std::bit_cast<float>((bits + 0x7fffffu) & 0xff800000u);
    }
    const FloatVector scales = hn::Set(d, scale);
    for (i = 0; i + kLanes <= count; i += kLanes)
        hn::StoreU(round_to_fp8(hn::Div(hn::LoadU(d, x + i), scales)), d, q + i);
    for (; i < count; ++i) q[i] = fp8_e4m3_to_f32(f32_to_fp8_e4m3(x[i] / scale));
    return scale;
}

// y = a + b; y may be a.
void sum_of_two(const float* a, const float* b, int64_t count, float* y) {
    const Floats d;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, y + i);
    for (; i < count; ++i) y[i] = a[i] + b[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(quantise_block);
HWY_EXPORT(sum_of_two);

constexpr int64_t kStripColumns = 1024;  // of sums by halves; what is held lies in L1

// Columns [first, first + count) of parts [begin, end), by halves. Returns where the sum is: in
// `to`, or for a single part where it was. `held`: kStripColumns floats per level of halving.
const float* sum_by_halves(const Tensor& parts, int64_t begin, int64_t end, int64_t first,
                           int64_t count, float* to, float* held) {
    if (end - begin == 1) return parts.row<float>(begin) + first;
    const int64_t middle = begin + (end - begin) / 2;
    const float* left = sum_by_halves(parts, begin, middle, first, count, to, held);
    const float* right =
        sum_by_halves(parts, middle, end, first, count, held, held + kStripColumns);
    HWY_DYNAMIC_DISPATCH(sum_of_two)(left, right, count, to);
    return to;
}

}  // namespace

void CpuKernels::quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                              const Tensor& scales, const int64_t* num_rows) {
    const int64_t columns = x.dim(1);
    check_shape(x, "x", DType::f32, {x.rows(), columns});
    check_shape(q, "q", DType::f32, {x.rows(), columns});
    check_shape(scales, "scales", DType::f32, {x.rows(), ceil_div(columns, kScaleBlock)});
    const int64_t rows = num_rows != nullptr ? *num_rows : x.rows();
    for_row_ranges(threads_, rows, columns, [&](int64_t first, int64_t num) {
        for (int64_t row = first; row < first + num; ++row)
            for (int64_t block = 0; block * kScaleBlock < columns; ++block) {
                const int64_t begin = block * kScaleBlock;
                scales.row<float>(row)[block] = HWY_DYNAMIC_DISPATCH(quantise_block)(
                    x.row<float>(row) + begin, std::min(kScaleBlock, columns - begin),
                    power_of_two_scales, q.row<float>(row) + begin);
            }
    });
}

void CpuKernels::rms_norm_quantise(const Tensor& x, const Tensor& weight, float eps,
                                   bool power_of_two_scales, const Tensor& q,
                                   const Tensor& scales) {
    rms_norm(x, weight, eps, q);
    quantise_fp8(q, power_of_two_scales, q, scales, nullptr);
}

void CpuKernels::silu_mul_quantise(const Tensor& gate_up, bool power_of_two_scales, const Tensor& q,
                                   const Tensor& scales, const int64_t* num_rows) {
    silu_mul(gate_up, q, num_rows);
    quantise_fp8(q, power_of_two_scales, q, scales, num_rows);
}

void CpuKernels::tree_sum(const Tensor& parts, const Tensor& y) {
    constexpr int kLevels = 16;
    const int64_t num_parts = parts.dim(0), columns = y.row_size();
    check_shape(parts, "parts", DType::f32, {num_parts, y.rows(), columns});
    FERRY_CHECK(num_parts >= 1 && num_parts <= int64_t{1} << kLevels, "{} parts", num_parts);
    for_row_ranges(threads_, y.rows(), num_parts * columns, [&](int64_t first, int64_t num) {
        float held[(kLevels + 1) * kStripColumns];
        for (int64_t row = first; row < first + num; ++row)
            for (int64_t i = 0; i < columns; i += kStripColumns) {
                const int64_t count = std::min(kStripColumns, columns - i);
                float* to = y.row<float>(row) + i;
                const float* sum =
                    sum_by_halves(parts, 0, num_parts, row * columns + i, count, to, held);
                if (sum != to) std::copy_n(sum, count, to);
            }
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
