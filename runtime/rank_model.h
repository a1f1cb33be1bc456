// This rank's share of a model, loaded and connected to the others': what an engine or an expert
// rank runs on.
#pragma once
#include <optional>

#include "runtime/expert_worker.h"

namespace ferry {

class RankModel {
  public:
    // Collective over the transport's ranks. `progress` is called with the bytes read so far; the
    // arguments must outlive this. `shares`: what ranks of the node hold alike is kept once.
    RankModel(WeightSource& source, Kernels& kernels, const Numerics& numerics,
              const FabricOptions& options, Transport& transport,
              const std::function<void(int64_t bytes)>& progress = {},
              const std::function<void()>& before_connect = {}, const NodeShares& shares = {})
        : fabric_(options, source.config(), numerics, transport, kernels, before_connect),
          model_([&] {
              WeightLoader loader(source, kernels, progress);
              loader.share_on_node(shares);
              Transformer loaded(loader, fabric_.part(), numerics);
              for (NodeMemory* share : {shares.attention, shares.slice, shares.experts})
                  if (share != nullptr) share->barrier();
              return loaded;
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
