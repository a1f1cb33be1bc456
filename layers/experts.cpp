#include "layers/experts.h"

#include <algorithm>

namespace ferry {

Experts::Experts(WeightLoader& loader, const std::string& prefix, std::span<const int32_t> experts,
                 std::span<const SharedExpert> shared)
    : w1_(loader.experts(prefix + "w1", experts, shared)),
      w2_(loader.experts(prefix + "w2", experts, shared)),
      w3_(loader.experts(prefix + "w3", experts, shared)) {}

template <typename Input>
void Experts::forward_from(Kernels& kernels, Workspace& workspace, const Input& x, int64_t num_rows,
                           const GroupOffsets& groups, const Tensor& y) const {
    const std::span<const int64_t> offsets = groups.offsets;
    FERRY_CHECK(static_cast<int64_t>(offsets.size()) == num_experts() + 1 &&
                    (groups.on_device || offsets.back() == num_rows),
                "{} offsets for {} experts and {} rows", offsets.size(), num_experts(), num_rows);
    const int64_t inter = w1_.out();
    const Tensor gate_up = workspace.take(DType::f32, {num_rows, 2 * inter});
    w1_.forward_grouped(kernels, x, groups, gate_up.slice_columns(0, inter));
    w3_.forward_grouped(kernels, x, groups, gate_up.slice_columns(inter, inter));
    const LinearInput hidden =
        LinearInput::silu_mul(kernels, workspace, gate_up, w2_.dtype(), groups.num_rows());
    w2_.forward_grouped(kernels, hidden, groups, y);
}

void Experts::forward(Kernels& kernels, Workspace& workspace, const Tensor& x,
                      const GroupOffsets& groups, const Tensor& y) const {
    const Workspace::Scope scope(workspace);
    const LinearInput input(kernels, workspace, x, {w1_.dtype(), w3_.dtype()}, groups.num_rows());
    forward_from(kernels, workspace, input, x.rows(), groups, y);
}

void Experts::forward(Kernels& kernels, Workspace& workspace, const WireRows& x,
                      const GroupOffsets& groups, const Tensor& y) const {
    FERRY_CHECK(takes_wire_rows(workspace), "rows to be quantised are f32");
    const Workspace::Scope scope(workspace);
    forward_from(kernels, workspace, x, x.count(), groups, y);
}

int64_t Experts::weight_bytes_per_expert() const {
    if (num_experts() == 0) return 0;
    return (w1_.weight().size_bytes() + w2_.weight().size_bytes() + w3_.weight().size_bytes()) /
           num_experts();
}

size_t Experts::workspace_bytes(const ModelConfig& c, int64_t rows) {
    return static_cast<size_t>(4 * rows * (4 * c.moe_inter_dim + 2 * c.dim)) + (64 << 10);
}

}  // namespace ferry
