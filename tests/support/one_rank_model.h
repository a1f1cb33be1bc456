// A whole model on one rank, driven token by token: for tests that look at logits.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "comm/staging.h"
#include "runtime/attention_worker.h"
#include "runtime/rank_model.h"
#include "runtime/scheduler.h"

namespace ferry {

// The greedy continuation of a prompt, computed at most `chunk` rows at a time. All attention ranks
// of a world take as many steps.
std::vector<int32_t> greedy_tokens(AttentionWorker& worker, Device& device,
                                   const std::vector<int32_t>& prompt, int64_t num_tokens,
                                   int64_t num_pages, int64_t chunk = 512);

class OneRankModel {
  public:
    explicit OneRankModel(WeightSource& source, const Numerics& numerics = {}, int num_threads = 1,
                          int num_micro_batches = 1);

    // With kernels of any backend. send_rounded: rows for experts as send_rounded_rows() has them.
    OneRankModel(WeightSource& source, std::unique_ptr<Kernels> kernels,
                 const Numerics& numerics = {}, int num_micro_batches = 1,
                 BlockTransport* blocks = nullptr, bool send_rounded = false);

    void set_form(MlaForm form) { worker_.set_form(form); }
    StepGraphs::Counts step_counts() const { return worker_.step_counts(); }
    int64_t vocab_size() const { return source_.config().vocab_size; }

    // Logits after every `every`-th position of `tokens`, nothing after the others; the first
    // `prompt_length` are prompt. Rows are computed at most `chunk` at a time.
    std::vector<std::vector<float>> logits(const std::vector<int32_t>& tokens,
                                           int64_t prompt_length, int64_t chunk = 512,
                                           int32_t every = 1);
    // Of a source with its multi-token-prediction module: logits of the second token after each
    // position but the last one of `tokens`, then those of `num_more` rounds that go on from the
    // last and from their own best tokens. Leaves the drafts that were chosen, one more than
    // `num_more`, in `drafts`.
    std::vector<std::vector<float>> mtp_logits(const std::vector<int32_t>& tokens,
                                               int64_t prompt_length, int64_t chunk,
                                               int64_t num_more, std::vector<int32_t>& drafts);
    // The greedy continuation of a prompt.
    std::vector<int32_t> greedy(const std::vector<int32_t>& prompt, int64_t num_tokens,
                                int64_t chunk = 512);

  private:
    static constexpr WorkerLimits kLimits{.max_tokens = 512,
                                          .max_context = 1024,
                                          .max_logit_rows = 512,
                                          .num_pages = 24,
                                          .cuda_graphs = true};

    WeightSource& source_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    RankModel rank_;
    AttentionWorker worker_;
    HostView host_logits_;
};

}  // namespace ferry
