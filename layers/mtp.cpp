#include "layers/mtp.h"

namespace ferry {

Mtp::Mtp(WeightLoader& loader, const std::string& prefix)
    : enorm_(loader.plain(prefix + "enorm")),
      hnorm_(loader.plain(prefix + "hnorm")),
      head_norm_(loader.plain(prefix + "head_norm")),
      eps_(static_cast<float>(loader.config().norm_eps)) {
    const int64_t dim = loader.config().dim;
    embedded_proj_ = Linear(loader.linear(prefix + "eh_proj", {0, dim}, {0, dim}));
    hidden_proj_ = Linear(loader.linear(prefix + "eh_proj", {0, dim}, {dim, dim}));
}

void Mtp::input(Kernels& kernels, Workspace& workspace, const Tensor& embedded, const Tensor& h,
                const Tensor& norm, const Tensor& x) const {
    if (x.rows() == 0) return;
    const Workspace::Scope scope(workspace);
    const Tensor normed = workspace.take(DType::f32, {x.rows(), x.dim(1)});
    const Tensor again = workspace.take(DType::f32, {x.rows(), x.dim(1)});
    kernels.rms_norm(embedded, enorm_, eps_, normed);
    embedded_proj_.forward(kernels, workspace, normed, x);
    kernels.rms_norm(h, norm, eps_, normed);
    kernels.rms_norm(normed, hnorm_, eps_, again);
    hidden_proj_.forward(kernels, workspace, again, normed);
    kernels.add(normed, x);
}

}  // namespace ferry
