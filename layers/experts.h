// [9] The routed experts of one layer that this rank holds: w2(silu(w1 x) * w3 x), grouped by
// expert.
#pragma once
#include "layers/linear.h"

namespace ferry {

class Experts {
  public:
    Experts() = default;  // none
    // `prefix`: "layers/3/ffn/experts/"; local expert i is experts[i], which may be none where the
    // node's ranks share some.
    Experts(WeightLoader& loader, const std::string& prefix, std::span<const int32_t> experts,
            std::span<const SharedExpert> shared = {});

    // Rows of group e of x go through local expert e; x, y [rows, dim], the last offset rows, or
    // on the device not more. Each expert's weights are read once, whatever the number of rows.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                 const GroupOffsets& groups, const Tensor& y) const;
    // The same for rows as they travelled, where takes_wire_rows(). CPU only.
    void forward(Kernels& kernels, Workspace& workspace, const WireRows& x,
                 const GroupOffsets& groups, const Tensor& y) const;
    // Not where activations are to be quantised to fp8 first.
    bool takes_wire_rows(const Workspace& workspace) const {
        return !workspace.quantises(w1_.dtype()) && !workspace.quantises(w3_.dtype());
    }

    int64_t num_experts() const { return w1_.weight().spec.groups; }
    int64_t weight_bytes_per_expert() const;
    static size_t workspace_bytes(const ModelConfig& config, int64_t rows);

  private:
    template <typename Input>
    void forward_from(Kernels& kernels, Workspace& workspace, const Input& x, int64_t num_rows,
                      const GroupOffsets& groups, const Tensor& y) const;

    Linear w1_, w2_, w3_;  // groups = local experts
};

}  // namespace ferry
