#include "tests/support/reference_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/random.h"

namespace ferry {
namespace {

template <typename T>
T& element(std::vector<std::byte>& data, int64_t index) {
    return reinterpret_cast<T*>(data.data())[index];
}

float add_rounded(float sum, float x, float weight) {
    return std::fma(bf16_to_f32(f32_to_bf16(x)), weight, sum);
}

// sum_group(first k) of each group of int4 weights, scaled.
template <typename SumGroup>
float int4_dot(const PlainWeight& w, int64_t index, int64_t out, const SumGroup& sum_group) {
    const Tensor scales = w.group_scales(index);
    float sum = 0;
    for (int64_t k = 0; k < w.spec.in; k += kInt4Group)
        sum = std::fma(sum_group(k), bf16_to_f32(scales.row<uint16_t>(out)[k / kInt4Group]), sum);
    return sum;
}

}  // namespace

PlainWeight PlainWeight::random(const WeightSpec& spec, uint64_t seed) {
    Random numbers(seed);
    PlainWeight w{.spec = spec, .data = {}, .scales = {}};
    const bool is_int4 = spec.dtype == DType::int4x2;
    const int64_t count = spec.groups * spec.out * (is_int4 ? spec.in / 2 : spec.in);
    w.data.resize(static_cast<size_t>(count * size_bytes(spec.dtype)));
    for (int64_t i = 0; i < count; ++i) {
        const float value = numbers.next_normal();
        switch (spec.dtype) {
            case DType::f32:
                element<float>(w.data, i) = value;
                break;
            case DType::bf16:
                element<uint16_t>(w.data, i) = f32_to_bf16(value);
                break;
            case DType::int4x2:
                element<uint8_t>(w.data, i) = static_cast<uint8_t>(numbers.next_u32());
                break;
            default:  // every code but the NaNs, subnormals as often as others
                element<uint8_t>(w.data, i) =
                    static_cast<uint8_t>(numbers.next_u32() % 127 | (value < 0 ? 0x80u : 0u));
        }
    }
    if (spec.dtype == DType::fp8_e4m3) {
        w.scales.resize(static_cast<size_t>(spec.groups * ceil_div(spec.out, kScaleBlock) *
                                            ceil_div(spec.in, kScaleBlock)));
        for (float& scale : w.scales) scale = 0.01f * numbers.next_normal();
    }
    if (is_int4) {
        w.group_of_32_scales.resize(
            static_cast<size_t>(spec.groups * spec.out * spec.in / kInt4Group));
        for (uint16_t& scale : w.group_of_32_scales)
            scale = f32_to_bf16(0.1f * numbers.next_normal());
    }
    return w;
}

Tensor PlainWeight::group(int64_t index) const {
    const int64_t columns = spec.dtype == DType::int4x2 ? spec.in / 2 : spec.in;
    return Tensor(data.data() + index * spec.out * columns * size_bytes(spec.dtype), spec.dtype,
                  {spec.out, columns});
}

Tensor PlainWeight::group_scales(int64_t index) const {
    if (spec.dtype == DType::int4x2) {
        const int64_t groups = spec.in / kInt4Group;
        return Tensor(group_of_32_scales.data() + index * spec.out * groups, DType::bf16,
                      {spec.out, groups});
    }
    const int64_t rows = ceil_div(spec.out, kScaleBlock), blocks = ceil_div(spec.in, kScaleBlock);
    return Tensor(scales.data() + index * rows * blocks, DType::f32, {rows, blocks});
}

float PlainWeight::value(int64_t index, int64_t out, int64_t k) const {
    const Tensor w = group(index);
    switch (spec.dtype) {
        case DType::f32:
            return w.row<float>(out)[k];
        case DType::bf16:
            return bf16_to_f32(w.row<uint16_t>(out)[k]);
        case DType::int4x2:
            return static_cast<float>(int4_value(w.row<uint8_t>(out)[k / 2], k % 2));
        default:
            return fp8_e4m3_to_f32(w.row<uint8_t>(out)[k]);
    }
}

const float* PlainWeight::scale_row(int64_t index, int64_t out) const {
    return group_scales(index).row<float>(out / kScaleBlock);
}

Weight PlainWeight::packed(Kernels& kernels, int64_t rows_at_once) const {
    Weight weight = kernels.make_weight(spec);
    for (int64_t index = 0; index < spec.groups; ++index)
        for (int64_t first = 0; first < spec.out; first += rows_at_once) {
            const int64_t rows = std::min(rows_at_once, spec.out - first);
            if (spec.dtype != DType::fp8_e4m3 && spec.dtype != DType::int4x2) {
                kernels.pack(weight, index, first, group(index).slice_rows(first, rows), nullptr);
                continue;
            }
            const int64_t of_rows = spec.dtype == DType::int4x2 ? 1 : kScaleBlock;
            const Tensor part =
                group_scales(index).slice_rows(first / of_rows, ceil_div(rows, of_rows));
            kernels.pack(weight, index, first, group(index).slice_rows(first, rows), &part);
        }
    return weight;
}

float reference_dot(const float* x, const float* x_scales, const PlainWeight& w, int64_t group,
                    int64_t out) {
    if (w.spec.dtype == DType::int4x2)
        return int4_dot(w, group, out, [&](int64_t first) {
            float sum = 0;
            for (int64_t k = first; k < first + kInt4Group; ++k)
                sum = std::fma(x[k], w.value(group, out, k), sum);
            return sum;
        });
    float acc = 0;
    if (w.spec.dtype != DType::fp8_e4m3) {
        for (int64_t k = 0; k < w.spec.in; ++k) acc = std::fma(x[k], w.value(group, out, k), acc);
        return acc;
    }
    const float* scales = w.scale_row(group, out);
    for (int64_t block = 0; block * kScaleBlock < w.spec.in; ++block) {
        float block_sum = 0;
        const int64_t end = std::min(w.spec.in, (block + 1) * kScaleBlock);
        for (int64_t k = block * kScaleBlock; k < end; ++k)
            block_sum = std::fma(x[k], w.value(group, out, k), block_sum);
        acc = std::fma(block_sum, x_scales ? x_scales[block] * scales[block] : scales[block], acc);
    }
    return acc;
}

float reference_rounded_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                            int64_t out) {
    FERRY_CHECK(w.spec.in % 2 == 0);
    const auto sum_pairs = [&](int64_t first, int64_t end) {
        float sum = 0;
        for (int64_t k = first; k < end; k += 2) {
            sum = add_rounded(sum, x[k + 1], w.value(group, out, k + 1));
            sum = add_rounded(sum, x[k], w.value(group, out, k));
        }
        return sum;
    };
    if (w.spec.dtype != DType::int4x2) return sum_pairs(0, w.spec.in);
    return int4_dot(w, group, out,
                    [&](int64_t first) { return sum_pairs(first, first + kInt4Group); });
}

float reference_int8_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                         int64_t out) {
    const Tensor scales = w.group_scales(group);
    float y = 0;
    for (int64_t first = 0; first < w.spec.in; first += kInt4Group) {
        float largest = 0;
        bool finite = true;
        for (int64_t k = first; k < first + kInt4Group; ++k) {
            finite &= std::isfinite(x[k]);
            largest = std::max(largest, std::abs(x[k]));
        }
        float scale = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        int sum = 0;
        if (finite && largest >= 1e-30f) {
            scale = largest / 127;
            for (int64_t k = first; k < first + kInt4Group; ++k)
                sum += static_cast<int>(std::nearbyint(x[k] * (127 / largest))) *
                       static_cast<int>(w.value(group, out, k));
        }
        y = std::fma(static_cast<float>(sum),
                     bf16_to_f32(scales.row<uint16_t>(out)[first / kInt4Group]) * scale, y);
    }
    return y;
}

float reference_rounded_int8_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                                 int64_t out) {
    std::vector<float> rounded(static_cast<size_t>(w.spec.in));
    std::transform(x, x + w.spec.in, rounded.begin(),
                   [](float value) { return bf16_to_f32(f32_to_bf16(value)); });
    return reference_int8_dot(rounded.data(), nullptr, w, group, out);
}

float reference_amx_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                        int64_t out) {
    FERRY_CHECK(w.spec.in % 2 == 0);
    float sum = 0;
    for (int64_t first = 0; first < w.spec.in; first += 32) {
        float even = 0, odd = 0;
        for (int64_t k = first; k < std::min(first + 32, w.spec.in); k += 2) {
            even = add_rounded(even, x[k], w.value(group, out, k));
            odd = add_rounded(odd, x[k + 1], w.value(group, out, k + 1));
        }
        sum = sum + (even + odd);
    }
    return sum;
}

void reference_grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const PlainWeight& w,
                            const Tensor& y, const Tensor* x_scales, ReferenceDot* dot) {
    for (int64_t group = 0; group < w.spec.groups; ++group)
        for (int64_t row = offsets[static_cast<size_t>(group)];
             row < offsets[static_cast<size_t>(group + 1)]; ++row)
            for (int64_t out = 0; out < w.spec.out; ++out)
                y.row<float>(row)[out] =
                    dot(x.row<float>(row), x_scales ? x_scales->row<float>(row) : nullptr, w, group,
                        out);
}

void reference_head_gemm(const Tensor& x, int64_t x_head_stride, const PlainWeight& w,
                         const Tensor& y, ReferenceDot* dot) {
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t head = 0; head < w.spec.groups; ++head)
            for (int64_t out = 0; out < w.spec.out; ++out)
                y.row<float>(row)[head * w.spec.out + out] =
                    dot(x.row<float>(row) + head * x_head_stride, nullptr, w, head, out);
}

void reference_quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                            const Tensor& scales) {
    const int64_t columns = x.dim(1);
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t block = 0; block * kScaleBlock < columns; ++block) {
            const int64_t begin = block * kScaleBlock, end = std::min(columns, begin + kScaleBlock);
            float largest = 1e-4f;
            for (int64_t i = begin; i < end; ++i)
                largest = std::max(largest, std::abs(x.row<float>(row)[i]));
            float scale = largest / kFp8Max;
            if (power_of_two_scales) {  // up; a power of two is 0.5 * 2^exponent to frexp
                int exponent;
                if (std::frexp(scale, &exponent) != 0.5f) scale = std::ldexp(1.0f, exponent);
            }
            scales.row<float>(row)[block] = scale;
            for (int64_t i = begin; i < end; ++i)
                q.row<float>(row)[i] =
                    fp8_e4m3_to_f32(f32_to_fp8_e4m3(x.row<float>(row)[i] / scale));
        }
}

void reference_tree_sum(const Tensor& parts, const Tensor& y) {
    const auto sum = [&](auto&& self, int64_t begin, int64_t end, int64_t i) -> float {
        if (end - begin == 1) return parts.row<float>(begin)[i];
        const int64_t middle = begin + (end - begin) / 2;
        return self(self, begin, middle, i) + self(self, middle, end, i);
    };
    for (int64_t row = 0; row < y.rows(); ++row)
        for (int64_t i = 0; i < y.row_size(); ++i)
            y.row<float>(row)[i] = sum(sum, 0, parts.dim(0), row * y.row_size() + i);
}

}  // namespace ferry
