#include <algorithm>

#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/grouped_gemm_launch.h"
#include "layers/cuda/weight_layout.h"

namespace ferry {

void CudaKernels::grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                               const Tensor& y, const Tensor* x_scales) {
    const WeightSpec& spec = w.spec;
    check_shape(x, "x", x_scales != nullptr ? DType::fp8_e4m3 : DType::f32, {x.rows(), spec.in});
    check_shape(y, "y", DType::f32, {x.rows(), spec.out});
    if (x_scales != nullptr) {
        FERRY_CHECK(spec.dtype == DType::fp8_e4m3, "scaled activations for {} weights",
                    to_string(spec.dtype));
        check_shape(*x_scales, "x_scales", DType::f32, {x.rows(), ceil_div(spec.in, kScaleBlock)});
    }
    FERRY_CHECK(spec.groups <= kGemmMostGroups, "{} groups", spec.groups);
    if (y.empty()) return;

    const bool fp8 = spec.dtype == DType::fp8_e4m3, int4 = spec.dtype == DType::int4x2;
    const int64_t processors = info_.num_multiprocessors;
    GroupedGemmParams params{.x = x.data(),
                             .x_scales = x_scales != nullptr ? x_scales->as<float>() : nullptr,
                             .w = w.data.data(),
                             .w_scales = w.scales.as<float>(),
                             .y = y.as<float>(),
                             .offsets = device_offsets,
                             .x_stride = x.row_stride(),
                             .x_scales_stride = x_scales != nullptr ? x_scales->row_stride() : 0,
                             .w_stride = weight_row_stride(spec),
                             .w_scales_stride = weight_scale_stride(spec),
                             .y_stride = y.row_stride(),
                             .groups = static_cast<int>(spec.groups),
                             .out = static_cast<int>(spec.out),
                             .in = static_cast<int>(spec.in)};
    if (spec.dtype == DType::f32) {
        const int64_t tiles = gemm_most_tiles(x.rows(), spec.groups, spec.out, kGemmPlainTile);
        launch_grouped_gemm(params, GroupedWeights::f32,
                            static_cast<int>(std::min<int64_t>(2 * processors, tiles)), stream());
        return;
    }
    const bool hopper = info_.capability == 90;
    const bool fp8_by_fp8 = hopper && x_scales != nullptr && spec.in % 16 == 0 &&
                            x.row_stride() % 16 == 0 &&
                            reinterpret_cast<uintptr_t>(x.data()) % 16 == 0;
    if (!fp8_by_fp8) {
        const int64_t values = fp8 ? 16 : 8;
        params.x_stride = ceil_div(spec.in, values) * values;
        auto* rounded = static_cast<uint16_t*>(
            scratch(Scratch::x, static_cast<size_t>(2 * x.rows() * params.x_stride)));
        launch_round_rows(params,
                          {.x = x.data(),
                           .x_stride = x.row_stride(),
                           .x_fp8 = x_scales != nullptr,
                           .to = rounded,
                           .max_rows = x.rows(),
                           .permute = fp8},
                          stream());
        params.x = rounded;
    }
    const int64_t tiles = gemm_most_tiles(x.rows(), spec.groups, spec.out, kGemmColumns);
    if (hopper)
        launch_grouped_gemm_wgmma(params,
                                  fp8_by_fp8 ? GemmInputs::fp8
                                  : fp8      ? GemmInputs::widened_fp8
                                  : int4     ? GemmInputs::widened_int4
                                             : GemmInputs::bf16,
                                  static_cast<int>(std::min(processors, tiles)), stream());
    else
        launch_grouped_gemm(params,
                            fp8    ? GroupedWeights::fp8
                            : int4 ? GroupedWeights::int4
                                   : GroupedWeights::bf16,
                            static_cast<int>(std::min(2 * processors, tiles)), stream());
}

}  // namespace ferry
