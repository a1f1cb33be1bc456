#include "layers/moe.h"

#include <cmath>
#include <cstring>

namespace ferry {

void ExpertOrder::build(const Tensor& experts, int64_t num_experts) {
    const int64_t num_rows = experts.count();
    const int32_t* expert = experts.as<int32_t>();
    const int64_t topk = experts.dim(1);
    offsets.assign(static_cast<size_t>(num_experts + 1), 0);
    tokens.resize(static_cast<size_t>(num_rows));
    row_of.resize(static_cast<size_t>(num_rows));
    for (int64_t i = 0; i < num_rows; ++i) ++offsets[static_cast<size_t>(expert[i] + 1)];
    for (int64_t e = 0; e < num_experts; ++e)
        offsets[static_cast<size_t>(e + 1)] += offsets[static_cast<size_t>(e)];
    for (int64_t i = 0; i < num_rows;
         ++i) {  // offsets[e] runs to the end of e, then is shifted back
        const int64_t row = offsets[static_cast<size_t>(expert[i])]++;
        tokens[static_cast<size_t>(row)] = static_cast<int32_t>(i / topk);
        row_of[static_cast<size_t>(i)] = static_cast<int32_t>(row);
    }
    for (int64_t e = num_experts; e > 0; --e)
        offsets[static_cast<size_t>(e)] = offsets[static_cast<size_t>(e - 1)];
    offsets[0] = 0;
}

void moe_local(Kernels& kernels, Workspace& workspace, const Experts& experts, ExpertOrder& order,
               const Tensor& x, const Routing& routing, const Tensor& out) {
    const Workspace::Scope scope(workspace);
    const int64_t dim = x.dim(1), topk = routing.experts.dim(1);
    order.build(routing.experts, experts.num_experts());
    const int64_t num_rows = static_cast<int64_t>(order.tokens.size());
    const Tensor rows = workspace.take(DType::f32, {num_rows, dim});
    const Tensor y = workspace.take(DType::f32, {num_rows, dim});
    for (int64_t row = 0; row < num_rows; ++row)
        std::memcpy(rows.row<float>(row), x.row<float>(order.tokens[static_cast<size_t>(row)]),
                    static_cast<size_t>(dim) * sizeof(float));
    experts.forward(kernels, workspace, rows, order.offsets, y);
    for (int64_t token = 0; token < x.rows(); ++token) {
        float* sum = out.row<float>(token);
        std::memset(sum, 0, static_cast<size_t>(dim) * sizeof(float));
        for (int64_t k = 0; k < topk; ++k) {
            const float weight = routing.weights.row<float>(token)[k];
            const float* expert = y.row<float>(order.row_of[static_cast<size_t>(token * topk + k)]);
            for (int64_t i = 0; i < dim; ++i) sum[i] = std::fma(weight, expert[i], sum[i]);
        }
    }
}

}  // namespace ferry
