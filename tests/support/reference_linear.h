// The plain forms of linear layers: the definition of every bit that the CPU kernels compute.
#pragma once
#include <vector>

#include "layers/kernels.h"

namespace ferry {

// Matrices [groups][out, in] in plain order, with random values (fp8, int4: with random scales
// too).
struct PlainWeight {
    WeightSpec spec;
    std::vector<std::byte> data;
    std::vector<float> scales;                      // fp8: [groups][ceil(out/128), ceil(in/128)]
    std::vector<uint16_t> group_of_32_scales = {};  // int4: bf16 [groups][out, in / 32]

    static PlainWeight random(const WeightSpec& spec, uint64_t seed);

    Tensor group(int64_t index) const;         // [out, in]; int4: [out, in / 2]
    Tensor group_scales(int64_t index) const;  // [ceil(out/128), ceil(in/128)] or [out, in / 32]
    float value(int64_t group, int64_t out, int64_t k) const;  // without the scale
    const float* scale_row(int64_t group, int64_t out) const;  // of the blocks of k
    Weight packed(Kernels& kernels, int64_t rows_at_once = kScaleBlock) const;
};

// One output element: x [in]; x_scales [ceil(in/128)] or null. int4: layers/cpu/int4_panel.h.
float reference_dot(const float* x, const float* x_scales, const PlainWeight& w, int64_t group,
                    int64_t out);
// Of bf16 or int4 weights and x rounded to bf16: of each pair of k the second product first.
float reference_rounded_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                            int64_t out);
// Of int4 weights: layers/cpu/gemm_int8.cpp. The second: of x rounded to bf16 before.
float reference_int8_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                         int64_t out);
float reference_rounded_int8_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                                 int64_t out);
float reference_amx_dot(const float* x, const float*, const PlainWeight& w, int64_t group,
                        int64_t out);  // the formula of layers/cpu/amx.h

using ReferenceDot = decltype(reference_dot);
void reference_grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const PlainWeight& w,
                            const Tensor& y, const Tensor* x_scales = nullptr,
                            ReferenceDot* dot = reference_dot);
void reference_head_gemm(const Tensor& x, int64_t x_head_stride, const PlainWeight& w,
                         const Tensor& y, ReferenceDot* dot = reference_dot);
void reference_quantise_fp8(const Tensor& x, bool power_of_two_scales, const Tensor& q,
                            const Tensor& scales);
void reference_tree_sum(const Tensor& parts, const Tensor& y);

}  // namespace ferry
