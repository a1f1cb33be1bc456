// What one rank talks through: its layout, transport, exchange and tensor-parallel group. A world
// of one rank has one too, over lanes to itself, so that every run takes the same path.
#pragma once
#include <memory>
#include <string>

#include "comm/block_transport.h"
#include "comm/exchange.h"
#include "comm/tensor_parallel.h"
#include "layers/transformer.h"

namespace ferry {

struct FabricOptions {
    Layout layout;
    std::vector<Placement> placements;  // one, or one per MoE layer
    ExchangeOptions exchange;           // dim, topk and max_tokens are filled from model and limits
    int64_t max_tokens = 512;           // rows of one micro-batch of one attention rank
    int64_t max_logit_rows = 32;        // of them
    int num_draft_rounds = 0;           // of each step, of a model with n_mtp_layers
    // Between GPUs: null where rows go through host memory. Of this rank's tensor-parallel group,
    // too. Must outlive the fabric.
    BlockTransport* blocks = nullptr;
};

class RankFabric {
  public:
    // Collective. `transport` and `kernels` must outlive the fabric, whose tensors are in the
    // memory of the kernels' device whatever the transport reaches; `before_connect` opens further
    // lanes (a SharedCounter).
    RankFabric(const FabricOptions& options, const ModelConfig& model, const Numerics& numerics,
               Transport& transport, Kernels& kernels,
               const std::function<void()>& before_connect = {});

    const Layout& layout() const { return options_.layout; }
    int attention_rank() const { return options_.layout.attention_rank(rank_); }
    int expert_rank() const { return options_.layout.expert_rank(rank_); }
    int num_micro_batches() const { return options_.exchange.num_micro_batches; }
    const FabricOptions& options() const { return options_; }

    // What this rank loads of the model.
    ModelPart part() const;

    bool has_exchange() const {
        return exchange_ != nullptr;
    }  // models without MoE layers have none
    Exchange& exchange() { return *exchange_; }
    TensorParallel& tensor_parallel() { return *tensor_parallel_; }  // attention ranks only

  private:
    FabricOptions options_;
    ModelConfig model_;
    int rank_;
    std::unique_ptr<TensorParallel> tensor_parallel_;
    std::unique_ptr<Exchange> exchange_;
};

// What a world rank loads of a model.
ModelPart model_part(const FabricOptions& options, const ModelConfig& model, int world_rank);

// Rows that experts would round to bf16 in any case travel as bf16: the same bits from half the
// bytes. All ranks have kernels alike.
void send_rounded_rows(ExchangeOptions& exchange, const WeightSource& source,
                       const Kernels& kernels);

// One rank that does everything.
FabricOptions single_rank_fabric(const ModelConfig& model, int64_t max_tokens,
                                 int num_micro_batches = 1);

}  // namespace ferry
