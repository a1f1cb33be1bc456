// This rank's share of a model, loaded and connected to the others': what an engine or an expert
// rank runs on.
#pragma once
#include <optional>

#include "runtime/expert_worker.h"

namespace ferry {

class RankModel {
  public:
    // Collective over the transport's ranks. `progress` is called with the bytes read so far; the
    // arguments must outlive this.
    RankModel(WeightSource& source, Kernels& kernels, const Numerics& numerics,
              const FabricOptions& options, Transport& transport,
              const std::function<void(int64_t bytes)>& progress = {},
              const std::function<void()>& before_connect = {})
        : fabric_(options, source.config(), numerics, transport, &kernels.threads(),
                  before_connect),
          model_([&] {
              WeightLoader loader(source, kernels, progress);
              return Transformer(loader, fabric_.part(), numerics);
          }()) {
        if (fabric_.expert_rank() >= 0 && fabric_.has_exchange())
            experts_.emplace(kernels, model_, fabric_);
    }

    RankFabric& fabric() { return fabric_; }
    const Transformer& model() const { return model_; }
    ExpertWorker* experts() { return experts_ ? &*experts_ : nullptr; }

  private:
    RankFabric fabric_;
    Transformer model_;
    std::optional<ExpertWorker> experts_;
};

}  // namespace ferry
