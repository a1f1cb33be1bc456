#include "tests/support/one_rank_model.h"

#include <algorithm>
#include <numeric>

namespace ferry {

OneRankModel::OneRankModel(WeightSource& source, const Numerics& numerics, int num_threads,
                           int num_micro_batches)
    : OneRankModel(source, make_cpu_kernels(num_threads), numerics, num_micro_batches) {}

namespace {

FabricOptions fabric_of(const WeightSource& source, const Kernels& kernels, int64_t max_tokens,
                        int num_micro_batches, BlockTransport* blocks, bool send_rounded) {
    FabricOptions options = single_rank_fabric(source.config(), max_tokens, num_micro_batches);
    if (send_rounded) send_rounded_rows(options.exchange, source, kernels);
    options.exchange.stall_timeout_s = 600;  // an emulated GPU under a sanitizer is slow
    options.blocks = blocks;
    return options;
}

}  // namespace

namespace {

SchedulerOptions one_sequence(const AttentionWorker& worker, int64_t chunk) {
    return {.max_batch = 1,
            .max_batch_tokens = chunk,
            .max_prefill_chunk = chunk,
            .expanded_positions = worker.expanded_positions()};
}

}  // namespace

OneRankModel::OneRankModel(WeightSource& source, std::unique_ptr<Kernels> kernels,
                           const Numerics& numerics, int num_micro_batches, BlockTransport* blocks,
                           bool send_rounded)
    : source_(source),
      kernels_(std::move(kernels)),
      transport_(make_self_transport()),
      rank_(
          source, *kernels_, numerics,
          fabric_of(source, *kernels_, kLimits.max_tokens, num_micro_batches, blocks, send_rounded),
          *transport_),
      worker_(*kernels_, rank_.model(), rank_.fabric(), rank_.experts(), kLimits),
      host_logits_(kernels_->device()) {}

std::vector<std::vector<float>> OneRankModel::logits(const std::vector<int32_t>& tokens,
                                                     int64_t prompt_length, int64_t chunk,
                                                     int32_t every) {
    PageAllocator pages(kLimits.num_pages, false);
    Scheduler scheduler(one_sequence(worker_, chunk), pages);
    Sequence sequence;
    sequence.tokens = tokens;
    sequence.prompt_length = prompt_length;
    sequence.max_length = static_cast<int64_t>(tokens.size());
    scheduler.add(sequence);
    std::vector<std::vector<float>> result(tokens.size());
    while (sequence.num_computed < static_cast<int64_t>(tokens.size())) {
        const StepPlan& plan = scheduler.plan();
        StepBatch batch = plan.batch();
        std::vector<int32_t> wanted;
        for (size_t row = 0; row < batch.tokens.size(); ++row)
            if ((batch.positions[row] + 1) % every == 0)
                wanted.push_back(static_cast<int32_t>(row));
        batch.logit_rows = wanted;
        const Tensor logits = host_logits_.of(worker_.step(batch).logits);
        for (int64_t i = 0; i < logits.rows(); ++i) {
            const int32_t position =
                batch.positions[static_cast<size_t>(wanted[static_cast<size_t>(i)])];
            result[static_cast<size_t>(position)].assign(logits.row<float>(i),
                                                         logits.row<float>(i) + vocab_size());
        }
        scheduler.complete();
    }
    return result;
}

std::vector<std::vector<float>> OneRankModel::mtp_logits(const std::vector<int32_t>& tokens,
                                                         int64_t prompt_length, int64_t chunk,
                                                         int64_t num_more,
                                                         std::vector<int32_t>& drafts) {
    PageAllocator pages(kLimits.num_pages, false);
    Scheduler scheduler(one_sequence(worker_, chunk), pages);
    Sequence sequence;
    sequence.tokens.assign(tokens.begin(), tokens.end() - 1);
    sequence.prompt_length = prompt_length;
    sequence.max_length = static_cast<int64_t>(tokens.size()) + num_more;
    scheduler.add(sequence);
    std::vector<std::vector<float>> result;
    std::vector<int32_t> rows, next;
    const auto keep = [&](const Tensor& device_logits) {
        const Tensor logits = host_logits_.of(device_logits);
        for (int64_t i = 0; i < logits.rows(); ++i)
            result.emplace_back(logits.row<float>(i), logits.row<float>(i) + vocab_size());
    };
    while (sequence.num_computed < std::ssize(sequence.tokens)) {
        const StepPlan& plan = scheduler.plan();
        StepBatch batch = plan.batch();
        worker_.step(batch);
        rows.resize(plan.tokens.size());
        std::iota(rows.begin(), rows.end(), 0);
        next.assign(tokens.begin() + plan.positions.front() + 1,
                    tokens.begin() + plan.positions.back() + 2);
        const SequenceRows all{.first_row = 0,
                               .num_rows = std::ssize(rows),
                               .first_position = plan.positions.front(),
                               .pages = sequence.pages};
        batch.tokens = next;
        batch.prompt = {};
        batch.generated = {&all, 1};
        batch.logit_rows = rows;
        keep(worker_.draft(batch, rows, true));
        scheduler.complete();
    }
    drafts.clear();
    for (int64_t round = 0;; ++round) {
        const std::vector<float>& last = result.back();
        drafts.push_back(static_cast<int32_t>(std::ranges::max_element(last) - last.begin()));
        if (round == num_more) return result;
        const auto position = static_cast<int32_t>(tokens.size()) - 1 + static_cast<int32_t>(round);
        const int32_t row = round == 0 ? rows.back() : 0, only = 0;
        const int64_t slot =
            sequence.pages.at(static_cast<size_t>(position / kPageTokens)) * kPageTokens +
            position % kPageTokens;
        const SequenceRows one{
            .first_row = 0, .num_rows = 1, .first_position = position, .pages = sequence.pages};
        keep(worker_.draft({.tokens = {&drafts.back(), 1},
                            .positions = {&position, 1},
                            .slots = {&slot, 1},
                            .prompt = {},
                            .generated = {&one, 1},
                            .logit_rows = {&only, 1}},
                           {&row, 1}, false));
    }
}

std::vector<int32_t> OneRankModel::greedy(const std::vector<int32_t>& prompt, int64_t num_tokens,
                                          int64_t chunk) {
    return greedy_tokens(worker_, kernels_->device(), prompt, num_tokens, kLimits.num_pages, chunk);
}

std::vector<int32_t> greedy_tokens(AttentionWorker& worker, Device& device,
                                   const std::vector<int32_t>& prompt, int64_t num_tokens,
                                   int64_t num_pages, int64_t chunk) {
    HostView host_logits(device);
    PageAllocator pages(num_pages, false);
    Scheduler scheduler(one_sequence(worker, chunk), pages);
    Sequence sequence;
    sequence.tokens = prompt;
    sequence.prompt_length = static_cast<int64_t>(prompt.size());
    sequence.max_length = sequence.prompt_length + num_tokens;
    scheduler.add(sequence);
    while (static_cast<int64_t>(sequence.tokens.size()) < sequence.max_length) {
        const StepPlan& plan = scheduler.plan();
        const Tensor logits = host_logits.of(worker.step(plan.batch()).logits);
        scheduler.complete();
        if (logits.rows() == 0) continue;
        const float* row = logits.row<float>(0);
        sequence.tokens.push_back(
            static_cast<int32_t>(std::max_element(row, row + logits.dim(1)) - row));
    }
    return {sequence.tokens.begin() + sequence.prompt_length, sequence.tokens.end()};
}

}  // namespace ferry
