// [7] Gate: which experts each token goes to, and with what weight (MODEL.md "Gate"). f32
// throughout.
#pragma once
#include <optional>

#include "comm/routing.h"
#include "layers/linear.h"

namespace ferry {

class Gate {
  public:
    // `prefix`: "layers/3/ffn/gate/".
    Gate(WeightLoader& loader, const std::string& prefix);

    // x: [tokens, dim]; fills routing.experts [tokens, topk] i32 and routing.weights [tokens, topk]
    // f32.
    void forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                 const Routing& routing) const;

  private:
    Linear weight_;  // [experts, dim] f32
    std::optional<OwnedTensor> bias_;
    GateParams params_;
};

}  // namespace ferry
