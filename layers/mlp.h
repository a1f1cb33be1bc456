// [6] Gated MLP: w2(silu(w1 x) * w3 x). Dense layers and shared experts; one TP rank holds its
// slices of the inner dimension.
#pragma once
#include <vector>

#include "layers/linear.h"

namespace ferry {

// The inner dimension is cut into `num_slices` ranges; row-parallel sums are taken slice by slice,
// then by halves, so that they do not depend on the TP size (DESIGN 4.1). Boundaries fall on
// multiples of 128 for fp8, of 32 for int4, else of 16; slices may be empty.
std::vector<Range> inner_slices(int64_t inter_dim, int64_t num_slices, DType dtype);

class Mlp {
  public:
    // `prefix`: "layers/0/ffn/" or "layers/3/ffn/shared/".
    Mlp(WeightLoader& loader, const std::string& prefix, int64_t inter_dim, const ModelPart& part,
        const Numerics& numerics);

    // The partial outputs of this rank's slices: parts [slices held, rows, dim], in slice order.
    void partial(Kernels& kernels, Workspace& workspace, const Tensor& x,
                 const Tensor& parts) const;
    // y = the whole MLP, when this rank holds every slice.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const Tensor& y) const;

    int64_t num_slices() const { return static_cast<int64_t>(w2_.size()); }
    int64_t weight_bytes() const;
    static size_t workspace_bytes(const ModelConfig& config, const Numerics& numerics,
                                  int64_t inter_dim, int64_t tokens);

  private:
    DType w2_dtype() const;

    Linear w1_, w3_;             // [inner held, dim]
    std::vector<Linear> w2_;     // [dim, inner of one slice]
    std::vector<Range> slices_;  // within the inner dimension held
};

}  // namespace ferry
