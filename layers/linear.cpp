#include "layers/linear.h"

namespace ferry {

void LinearInput::take_quantised(Kernels& kernels, Workspace& workspace, int64_t rows,
                                 int64_t columns) {
    has_quantised_ = true;
    quantised_ = workspace.take(kernels.quantised_dtype(), {rows, columns});
    scales_ = workspace.take(DType::f32, {rows, ceil_div(columns, kScaleBlock)});
}

bool LinearInput::take_rounded(Kernels& kernels, Workspace& workspace, int64_t rows,
                               int64_t columns) {
    const DType dtype = kernels.row_dtype(DType::bf16, columns);
    if (dtype == DType::f32) return false;
    // Rows a power of two apart fight for the same sets of a cache: an odd number of lines.
    constexpr int64_t kLineValues = 32;
    const int64_t stride = (ceil_div(columns, kLineValues) | 1) * kLineValues;
    has_rounded_ = true;
    rounded_ = workspace.take(dtype, {rows, stride}).slice_columns(0, columns);
    return true;
}

LinearInput::LinearInput(Kernels& kernels, Workspace& workspace, const Tensor& x,
                         std::initializer_list<DType> weights, const int64_t* num_rows)
    : rows_(x) {
    bool wanted = false, rounds = false;
    for (DType dtype : weights) {
        wanted |= workspace.quantises(dtype);
        rounds |= dtype == DType::bf16;
    }
    if (rounds && take_rounded(kernels, workspace, x.rows(), x.dim(1)))
        kernels.round_rows(x, rounded_, num_rows);
    if (!wanted) return;
    take_quantised(kernels, workspace, x.rows(), x.dim(1));
    kernels.quantise_fp8(x, workspace.numerics().power_of_two_scales, quantised_, scales_,
                         num_rows);
}

LinearInput LinearInput::rms_norm(Kernels& kernels, Workspace& workspace, const Tensor& x,
                                  const Tensor& weight, float eps, DType weights) {
    LinearInput input;
    if (workspace.quantises(weights)) {
        input.take_quantised(kernels, workspace, x.rows(), x.dim(1));
        kernels.rms_norm_quantise(x, weight, eps, workspace.numerics().power_of_two_scales,
                                  input.quantised_, input.scales_);
    } else {
        input.rows_ = workspace.take(DType::f32, {x.rows(), x.dim(1)});
        kernels.rms_norm(x, weight, eps, input.rows_);
        if (weights == DType::bf16 && input.take_rounded(kernels, workspace, x.rows(), x.dim(1)))
            kernels.round_rows(input.rows_, input.rounded_);
    }
    return input;
}

LinearInput LinearInput::silu_mul(Kernels& kernels, Workspace& workspace, const Tensor& gate_up,
                                  DType weights, const int64_t* num_rows) {
    const int64_t rows = gate_up.rows(), inter = gate_up.dim(1) / 2;
    LinearInput input;
    if (workspace.quantises(weights)) {
        input.take_quantised(kernels, workspace, rows, inter);
        kernels.silu_mul_quantise(gate_up, workspace.numerics().power_of_two_scales,
                                  input.quantised_, input.scales_, num_rows);
    } else if (weights == DType::bf16 && input.take_rounded(kernels, workspace, rows, inter)) {
        kernels.silu_mul(gate_up, input.rounded_, num_rows);
    } else {
        input.rows_ = workspace.take(DType::f32, {rows, inter});
        kernels.silu_mul(gate_up, input.rows_, num_rows);
    }
    return input;
}

LinearInput LinearInput::slice_columns(int64_t begin, int64_t num) const {
    LinearInput part = *this;
    if (rows_.rank() > 0) part.rows_ = rows_.slice_columns(begin, num);
    if (has_rounded_) {
        FERRY_CHECK(begin % 2 == 0 && num % 2 == 0, "columns {}+{} of rounded rows", begin, num);
        part.rounded_ = rounded_.slice_columns(begin, num);
    }
    if (!has_quantised_) return part;
    FERRY_CHECK(begin % kScaleBlock == 0, "columns {}+{} of quantised rows", begin, num);
    part.quantised_ = quantised_.slice_columns(begin, num);
    part.scales_ = scales_.slice_columns(begin / kScaleBlock, ceil_div(num, kScaleBlock));
    return part;
}

void Linear::forward(Kernels& kernels, const LinearInput& x, const Tensor& y) const {
    kernels.gemm(x.values(dtype()), weight_, y, x.scales(dtype()));
}

void Linear::forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                     const Tensor& y) const {
    const Workspace::Scope scope(workspace);
    forward(kernels, LinearInput(kernels, workspace, x, {dtype()}), y);
}

void Linear::forward_grouped(Kernels& kernels, const LinearInput& x, const GroupOffsets& groups,
                             const Tensor& y) const {
    const Tensor &rows = x.values(dtype()), *scales = x.scales(dtype());
    if (groups.on_device)
        kernels.grouped_gemm(rows, groups.offsets.data(), weight_, y, scales);
    else
        kernels.grouped_gemm(rows, groups.offsets, weight_, y, scales);
}

void Linear::forward_grouped(Kernels& kernels, const WireRows& x, const GroupOffsets& groups,
                             const Tensor& y) const {
    FERRY_CHECK(!groups.on_device);
    kernels.grouped_gemm_wire(x, groups.offsets, weight_, y);
}

}  // namespace ferry
