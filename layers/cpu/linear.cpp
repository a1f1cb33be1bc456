#include <cmath>
#include <cstring>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {
namespace {

float load_value(const Weight& w, int64_t index) {
    switch (w.spec.dtype) {
        case DType::f32:
            return w.data.as<float>()[index];
        case DType::bf16:
            return bf16_to_f32(w.data.as<uint16_t>()[index]);
        default:
            return fp8_e4m3_to_f32(w.data.as<uint8_t>()[index]);
    }
}

const float* scale_row(const Weight& w, int64_t group, int64_t out) {
    const int64_t blocks = ceil_div(w.spec.in, kScaleBlock);
    return w.scales.as<float>() +
           (group * ceil_div(w.spec.out, kScaleBlock) + out / kScaleBlock) * blocks;
}

float dot(const float* x, const float* x_scales, const Weight& w, int64_t group, int64_t out) {
    const int64_t in = w.spec.in, base = (group * w.spec.out + out) * in;
    if (w.spec.dtype != DType::fp8_e4m3) {
        float acc = 0;
        for (int64_t k = 0; k < in; ++k) acc = std::fma(x[k], load_value(w, base + k), acc);
        return acc;
    }
    const float* scales = scale_row(w, group, out);
    float acc = 0;
    for (int64_t block = 0; block * kScaleBlock < in; ++block) {
        float block_sum = 0;
        const int64_t end = std::min(in, (block + 1) * kScaleBlock);
        for (int64_t k = block * kScaleBlock; k < end; ++k)
            block_sum = std::fma(x[k], load_value(w, base + k), block_sum);
        acc = std::fma(block_sum, x_scales ? x_scales[block] * scales[block] : scales[block], acc);
    }
    return acc;
}

}  // namespace

int64_t CpuKernels::packed_bytes(const WeightSpec& spec) const {
    return spec.groups * spec.out * spec.in * size_bytes(spec.dtype);
}

Weight CpuKernels::make_weight(const WeightSpec& spec) {
    Weight weight{.spec = spec,
                  .data = Buffer(device(), static_cast<size_t>(packed_bytes(spec))),
                  .scales = {}};
    if (spec.dtype == DType::fp8_e4m3)
        weight.scales =
            Buffer(device(), static_cast<size_t>(4 * spec.groups * ceil_div(spec.out, kScaleBlock) *
                                                 ceil_div(spec.in, kScaleBlock)));
    return weight;
}

void CpuKernels::pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                      const Tensor* scales) {
    const WeightSpec& spec = weight.spec;
    check_shape(w, "w", spec.dtype, {w.rows(), spec.in});
    const int64_t row_bytes = spec.in * size_bytes(spec.dtype);
    for (int64_t row = 0; row < w.rows(); ++row)
        std::memcpy(weight.data.as<std::byte>() + (group * spec.out + first_out + row) * row_bytes,
                    w.row<std::byte>(row), static_cast<size_t>(row_bytes));
    if (scales == nullptr) return;
    const int64_t blocks = ceil_div(spec.in, kScaleBlock);
    std::memcpy(weight.scales.as<float>() +
                    (group * ceil_div(spec.out, kScaleBlock) + first_out / kScaleBlock) * blocks,
                scales->data(), static_cast<size_t>(scales->count() * 4));
}

void CpuKernels::unpack(const Weight& weight, int64_t group, const Tensor& w_f32) {
    const WeightSpec& spec = weight.spec;
    check_shape(w_f32, "w_f32", DType::f32, {spec.out, spec.in});
    for (int64_t out = 0; out < spec.out; ++out)
        for (int64_t k = 0; k < spec.in; ++k) {
            float value = load_value(weight, (group * spec.out + out) * spec.in + k);
            if (spec.dtype == DType::fp8_e4m3)
                value *= scale_row(weight, group, out)[k / kScaleBlock];
            w_f32.row<float>(out)[k] = value;
        }
}

void CpuKernels::gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) {
    const int64_t offsets[] = {0, x.rows()};
    grouped_gemm(x, offsets, w, y, x_scales);
}

void CpuKernels::grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                              const Tensor& y, const Tensor* x_scales) {
    check_shape(x, "x", DType::f32, {x.rows(), w.spec.in});
    check_shape(y, "y", DType::f32, {x.rows(), w.spec.out});
    for (int64_t group = 0; group + 1 < static_cast<int64_t>(offsets.size()); ++group)
        for (int64_t row = offsets[group]; row < offsets[group + 1]; ++row)
            threads_.parallel_for(w.spec.out, [&](int64_t out, int) {
                y.row<float>(row)[out] =
                    dot(x.row<float>(row), x_scales ? x_scales->row<float>(row) : nullptr, w, group,
                        out);
            });
}

void CpuKernels::head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                           const Tensor& y) {
    check_shape(y, "y", DType::f32, {x.rows(), w.spec.groups, w.spec.out});
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t head = 0; head < w.spec.groups; ++head)
            for (int64_t out = 0; out < w.spec.out; ++out)
                y.row<float>(row)[head * w.spec.out + out] =
                    dot(x.row<float>(row) + head * x_head_stride, nullptr, w, head, out);
}

void CpuKernels::quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                              const Tensor& scales) {
    const int64_t columns = x.dim(1);
    check_shape(scales, "scales", DType::f32, {x.rows(), ceil_div(columns, kScaleBlock)});
    for (int64_t row = 0; row < x.rows(); ++row)
        for (int64_t block = 0; block * kScaleBlock < columns; ++block) {
            const int64_t begin = block * kScaleBlock, end = std::min(columns, begin + kScaleBlock);
            float largest = 1e-4f;
            for (int64_t i = begin; i < end; ++i)
                largest = std::max(largest, std::abs(x.row<float>(row)[i]));
            float scale = largest / kFp8Max;
            if (power_of_two_scales) scale = std::exp2(std::ceil(std::log2(scale)));
            scales.row<float>(row)[block] = scale;
            for (int64_t i = begin; i < end; ++i)
                q.row<float>(row)[i] =
                    fp8_e4m3_to_f32(f32_to_fp8_e4m3(x.row<float>(row)[i] / scale));
        }
}

void CpuKernels::tree_sum(const Tensor& parts, const Tensor& y) {
    const int64_t n = parts.dim(0);
    const auto sum = [&](auto&& self, int64_t begin, int64_t end, int64_t i) -> float {
        if (end - begin == 1) return parts.row<float>(begin)[i];
        const int64_t middle = begin + (end - begin) / 2;
        return self(self, begin, middle, i) + self(self, middle, end, i);
    };
    const int64_t row_size = y.row_size();
    for (int64_t row = 0; row < y.rows(); ++row)
        for (int64_t i = 0; i < row_size; ++i)
            y.row<float>(row)[i] = sum(sum, 0, n, row * row_size + i);
}

}  // namespace ferry
