#include "layers/mlp.h"

namespace ferry {

std::vector<Range> inner_slices(int64_t inter_dim, int64_t num_slices, DType dtype) {
    const std::optional<ScaleForm> scales = scale_form(dtype);
    const int64_t block = scales ? scales->columns : 16;
    const int64_t num_blocks = ceil_div(inter_dim, block);
    std::vector<Range> slices;
    for (int64_t i = 0; i < num_slices; ++i) {
        const int64_t begin = std::min(inter_dim, num_blocks * i / num_slices * block);
        const int64_t end = std::min(inter_dim, num_blocks * (i + 1) / num_slices * block);
        slices.push_back({begin, end - begin});
    }
    return slices;
}

Mlp::Mlp(WeightLoader& loader, const std::string& prefix, int64_t inter_dim, const ModelPart& part,
         const Numerics& numerics) {
    const WeightLoader::HeldAlike held_alike(loader, loader.shares().slice);
    FERRY_CHECK(numerics.tp_slices % part.tp_size == 0, "{} slices over TP size {}",
                numerics.tp_slices, part.tp_size);
    const std::vector<Range> all =
        inner_slices(inter_dim, numerics.tp_slices, loader.dtype(prefix + "w2"));
    const int64_t held = numerics.tp_slices / part.tp_size, first = part.tp_rank * held;
    const int64_t begin = all[static_cast<size_t>(first)].begin;
    const Range& last = all[static_cast<size_t>(first + held - 1)];
    const Range inner{begin, last.begin + last.num - begin};

    const int64_t dim = loader.config().dim;
    slices_.assign(all.begin() + first, all.begin() + first + held);
    for (Range& slice : slices_) slice.begin -= begin;
    w2_.resize(static_cast<size_t>(held));
    if (inner.num == 0) return;
    w1_ = Linear(loader.linear(prefix + "w1", inner, {0, dim}));
    w3_ = Linear(loader.linear(prefix + "w3", inner, {0, dim}));
    for (size_t i = 0; i < slices_.size(); ++i)
        if (slices_[i].num > 0)
            w2_[i] = Linear(
                loader.linear(prefix + "w2", {0, dim}, {begin + slices_[i].begin, slices_[i].num}));
}

DType Mlp::w2_dtype() const {
    for (size_t i = 0; i < w2_.size(); ++i)
        if (slices_[i].num > 0) return w2_[i].dtype();
    return DType::f32;
}

void Mlp::partial(Kernels& kernels, Workspace& workspace, const Tensor& x,
                  const Tensor& parts) const {
    check_shape(parts, "parts", DType::f32, {num_slices(), x.rows(), x.dim(1)});
    const Workspace::Scope scope(workspace);
    const int64_t inner = w1_.out();
    if (inner == 0) {
        kernels.fill_zero(parts);
        return;
    }
    const Tensor gate_up = workspace.take(DType::f32, {x.rows(), 2 * inner});
    const LinearInput input(kernels, workspace, x, {w1_.dtype(), w3_.dtype()});
    w1_.forward(kernels, input, gate_up.slice_columns(0, inner));
    w3_.forward(kernels, input, gate_up.slice_columns(inner, inner));
    const LinearInput hidden = LinearInput::silu_mul(kernels, workspace, gate_up, w2_dtype());
    for (int64_t i = 0; i < num_slices(); ++i) {
        const Range& slice = slices_[static_cast<size_t>(i)];
        const Tensor part = parts.slice_rows(i, 1).reshape({x.rows(), x.dim(1)});
        if (slice.num == 0) {
            kernels.fill_zero(part);
            continue;
        }
        w2_[static_cast<size_t>(i)].forward(kernels, hidden.slice_columns(slice.begin, slice.num),
                                            part);
    }
}

void Mlp::forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const Tensor& y) const {
    const Workspace::Scope scope(workspace);
    const Tensor parts = workspace.take(DType::f32, {num_slices(), x.rows(), x.dim(1)});
    partial(kernels, workspace, x, parts);
    kernels.tree_sum(parts, y);
}

int64_t Mlp::weight_bytes() const {
    int64_t bytes = w1_.weight().size_bytes() + w3_.weight().size_bytes();
    for (const Linear& w2 : w2_) bytes += w2.weight().size_bytes();
    return bytes;
}

size_t Mlp::workspace_bytes(const ModelConfig& config, const Numerics& numerics, int64_t inter_dim,
                            int64_t tokens) {
    const int64_t per_token = numerics.tp_slices * config.dim + 4 * inter_dim + 2 * config.dim;
    return static_cast<size_t>(4 * tokens * per_token) + (64 << 10);
}

}  // namespace ferry
