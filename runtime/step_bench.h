// Times steps of a model on one rank, stage by stage, beside the two rates that bound them: on a
// CPU what a plain read loop and multiply-adds reach in turns with the steps (layers/cpu/rates.h),
// on a GPU what a copy and a matrix product reach (device_rates.h). For `ferry bench layer`.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "comm/staging.h"
#include "layers/cpu/rates.h"
#include "runtime/attention_worker.h"
#include "runtime/rank_model.h"
#include "runtime/token_chooser.h"

namespace ferry {

// One kind of step: the next token of each of `sequences` that have `tokens` positions already, or
// the first `tokens` tokens of each of `sequences` prompts.
struct StepWorkload {
    bool prefill = false;
    int64_t sequences = 1;
    int64_t tokens = 512;

    int64_t num_rows() const { return prefill ? sequences * tokens : sequences; }
    int64_t last_position() const { return prefill ? tokens - 1 : tokens; }
};

// A stage over all its layers in one step. Bytes: weights (of the experts that were chosen) and
// cache, each read once; activations are not counted.
struct StepStage {
    std::string name;
    int64_t num_layers = 1;
    double best_s = 0, median_s = 0;
    double bytes = 0, flops = 0;
};

struct StepTimes {
    StepWorkload workload;
    std::vector<StepStage> stages;  // the last one, "step", is all of it
    Rates rates;                    // kernel_s: of the whole step
    double experts_per_layer = 0;   // that any row chose, on average
    // Every repetition gave the same logits and, on a CPU, so did the last sequence alone (decode)
    // or in two chunks (prefill), bit for bit.
    bool same_bits = true;
};

class StepBench {
  public:
    // Loads the model and allocates for any of `workloads`.
    StepBench(WeightSource& source, const Numerics& numerics, std::unique_ptr<Kernels> kernels,
              const std::vector<StepWorkload>& workloads);

    StepTimes run(const StepWorkload& workload, int num_warmups, int num_repetitions);

    const Layout& layout() { return rank_.fabric().layout(); }  // of one rank
    int64_t weight_bytes() const { return rank_.model().weight_bytes(); }

  private:
    struct Rows;
    // With the choice of the most likely tokens. The logits stay where they are.
    Tensor step(const Rows& rows);
    Rows rows_of(const StepWorkload& workload, int64_t first_sequence, int64_t begin,
                 int64_t end) const;
    std::vector<int64_t> expert_rows();
    void count_work(StepTimes& times, const std::vector<int64_t>& touched) const;

    bool on_gpu() const { return blocks_ != nullptr; }
    double timed_step(const Rows& rows, Rates& rates, Tensor& logits);

    const ModelConfig config_;
    Numerics numerics_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<BlockTransport> blocks_;  // of a GPU
    RankModel rank_;
    AttentionWorker worker_;
    TokenChooser chooser_;
    std::vector<SampleInput> greedy_;  // for all logit rows of any workload
    HostView host_logits_;
    Buffer memory_;       // for the read loop of a CPU
    Rates device_rates_;  // of a GPU
};

}  // namespace ferry
