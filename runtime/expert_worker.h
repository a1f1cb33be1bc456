// [8] The expert side of a rank: rows come in, go through the experts held here, and go back.
#pragma once
#include "layers/transformer.h"
#include "runtime/rank_fabric.h"

namespace ferry {

class ExpertWorker {
  public:
    // Allocates everything that a batch needs. `model` and `fabric` must outlive the worker.
    ExpertWorker(Kernels& kernels, const Transformer& model, RankFabric& fabric);

    // The most rows that one batch can bring: every attention rank's tokens to every slot that a
    // token can choose here.
    static int64_t max_rows(const ModelConfig& config, const ModelPart& part,
                            const FabricOptions& options);

    // The experts' outputs for a batch, in its `rows`.
    const Tensor& compute(const ExpertBatch& batch);
    // An expert rank's whole life: serves batches in order of readiness until every attention rank
    // has closed.
    void run();
    // By attention rank: how much later than the first its rows came, since the start, in all; over
    // so many batches.
    std::span<const int64_t> lateness_ns() const { return lateness_ns_; }
    int64_t num_batches() const { return num_batches_; }
    // Steps that were repeated with the attention ranks (AttentionWorker::next_form).
    StepGraphs::Counts step_counts() const {
        return graphs_ != nullptr ? graphs_->counts() : StepGraphs::Counts{};
    }

  private:
    void note(const ExpertBatch& batch);
    void begin_step();
    bool run_step();
    void repeat_step();
    StepForm form_in(Agreement agreed) const;

    Kernels& kernels_;
    const Transformer& model_;
    RankFabric& fabric_;
    Workspace workspace_;
    int64_t max_rows_;
    Tensor output_;
    std::vector<int64_t> lateness_ns_;
    int64_t num_batches_ = 0;
    StepForm next_form_;
    std::unique_ptr<StepGraphs> graphs_;  // once steps are repeated
};

}  // namespace ferry
