// y = x W^T, with fp8 activations when the numerics ask for them.
#pragma once
#include <initializer_list>

#include "layers/kernels.h"
#include "layers/numerics.h"
#include "layers/weight_loader.h"
#include "layers/workspace.h"

namespace ferry {

// Rows that linear layers read: f32, or quantised once for all fp8 layers that share them, or
// rounded once for all bf16 layers. Lives as long as the workspace's scope that it was made in.
class LinearInput {
  public:
    // x, for layers with weights of these types: quantised as well if one of them asks for it.
    // num_rows: as of Kernels::quantise_fp8.
    LinearInput(Kernels& kernels, Workspace& workspace, const Tensor& x,
                std::initializer_list<DType> weights, const int64_t* num_rows = nullptr);
    // rms_norm(x, weight), and silu(gate) * up of gate_up [rows, 2 inter], for one type of weights.
    static LinearInput rms_norm(Kernels& kernels, Workspace& workspace, const Tensor& x,
                                const Tensor& weight, float eps, DType weights);
    static LinearInput silu_mul(Kernels& kernels, Workspace& workspace, const Tensor& gate_up,
                                DType weights, const int64_t* num_rows = nullptr);

    // Quantised: of whole blocks of 128.
    LinearInput slice_columns(int64_t begin, int64_t num) const;

    // What a layer with such weights takes: [rows, in], and scales or null.
    const Tensor& values(DType weights) const {
        if (is_quantised(weights)) return quantised_;
        return weights == DType::bf16 && has_rounded_ ? rounded_ : rows_;
    }
    const Tensor* scales(DType weights) const { return is_quantised(weights) ? &scales_ : nullptr; }

  private:
    LinearInput() = default;
    bool is_quantised(DType weights) const { return has_quantised_ && weights == DType::fp8_e4m3; }
    void take_quantised(Kernels& kernels, Workspace& workspace, int64_t rows, int64_t columns);
    // False if the kernels want rows that such weights multiply as f32.
    bool take_rounded(Kernels& kernels, Workspace& workspace, int64_t rows, int64_t columns);

    bool has_quantised_ = false, has_rounded_ = false;
    Tensor rows_, quantised_, scales_, rounded_;
};

class Linear {
  public:
    Linear() = default;
    explicit Linear(Weight weight) : weight_(std::move(weight)) {}

    // x: [rows, in] (a column range is fine), y: [rows, out] f32.
    void forward(Kernels& kernels, const LinearInput& x, const Tensor& y) const;
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const Tensor& y) const;
    // Rows of group g use matrix g.
    void forward_grouped(Kernels& kernels, const LinearInput& x, const GroupOffsets& groups,
                         const Tensor& y) const;
    void forward_grouped(Kernels& kernels, const WireRows& x, const GroupOffsets& groups,
                         const Tensor& y) const;

    const Weight& weight() const { return weight_; }
    DType dtype() const { return rows_as(weight_.spec.dtype); }  // that its rows are made for
    int64_t in() const { return weight_.spec.in; }
    int64_t out() const { return weight_.spec.out; }

  private:
    Weight weight_;
};

}  // namespace ferry
