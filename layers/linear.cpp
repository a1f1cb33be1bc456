#include "layers/linear.h"

namespace ferry {

void Linear::forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                     const Tensor& y) const {
    const int64_t offsets[] = {0, x.rows()};
    if (weight_.spec.groups == 1 && !workspace.quantises(weight_.spec.dtype))
        kernels.gemm(x, weight_, y);
    else
        forward_grouped(kernels, workspace, x, offsets, y);
}

void Linear::forward_grouped(Kernels& kernels, Workspace& workspace, const Tensor& x,
                             std::span<const int64_t> offsets, const Tensor& y) const {
    if (!workspace.quantises(weight_.spec.dtype)) {
        kernels.grouped_gemm(x, offsets, weight_, y);
        return;
    }
    const Workspace::Scope scope(workspace);
    const Tensor q = workspace.take(DType::f32, {x.rows(), x.dim(1)});
    const Tensor scales = workspace.take(DType::f32, {x.rows(), ceil_div(x.dim(1), kScaleBlock)});
    kernels.quantise_fp8(x, workspace.numerics().power_of_two_scales, q, scales);
    kernels.grouped_gemm(q, offsets, weight_, y, &scales);
}

}  // namespace ferry
