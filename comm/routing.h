// Which experts each token goes to: what the gate decides and the exchange obeys.
#pragma once
#include "base/tensor.h"

namespace ferry {

struct Routing {
    Tensor experts;  // [tokens, topk] i32, global expert ids, distinct within a token
    Tensor weights;  // [tokens, topk] f32; combine sums in slot order k = 0, 1, ...
};

}  // namespace ferry
