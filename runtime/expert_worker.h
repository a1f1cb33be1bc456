// [8] The expert side of a rank: rows come in, go through the experts held here, and go back.
#pragma once
#include "layers/transformer.h"
#include "runtime/rank_fabric.h"

namespace ferry {

class ExpertWorker {
  public:
    // Allocates everything that a batch needs. `model` and `fabric` must outlive the worker.
    ExpertWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric);

    // The experts' outputs for a batch, in place of its rows.
    const Tensor& compute(const ExpertBatch& batch);
    // An expert rank's whole life: serves batches in order of readiness until every attention rank
    // has closed.
    void run();

  private:
    Kernels& kernels_;
    const Transformer& model_;
    RankFabric& fabric_;
    Workspace workspace_;
    Tensor output_;
};

}  // namespace ferry
