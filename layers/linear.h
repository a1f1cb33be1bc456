// y = x W^T, with fp8 activations when the numerics ask for them.
#pragma once
#include "layers/kernels.h"
#include "layers/numerics.h"
#include "layers/weight_loader.h"
#include "layers/workspace.h"

namespace ferry {

class Linear {
  public:
    Linear() = default;
    explicit Linear(Weight weight) : weight_(std::move(weight)) {}

    // x: [rows, in] f32 (a column range is fine), y: [rows, out] f32.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const Tensor& y) const;
    // Rows [offsets[g], offsets[g+1]) use matrix g.
    void forward_grouped(Kernels& kernels, Workspace& workspace, const Tensor& x,
                         std::span<const int64_t> offsets, const Tensor& y) const;

    const Weight& weight() const { return weight_; }
    int64_t in() const { return weight_.spec.in; }
    int64_t out() const { return weight_.spec.out; }

  private:
    Weight weight_;
};

}  // namespace ferry
