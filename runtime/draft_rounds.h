// What the model's multi-token-prediction module is given to draft (layers/mtp.h,
// AttentionWorker::draft). Plain bookkeeping, after a step's tokens are chosen.
#pragma once
#include <vector>

#include "runtime/scheduler.h"

namespace ferry {

class DraftRounds {
  public:
    // Allocates for steps of such a scheduler.
    explicit DraftRounds(const SchedulerOptions& options);

    // The first round: rows of the step whose next tokens are known, of sequences that go on. The
    // module's latents of all are written, and a draft is wanted of those that have just got a
    // token.
    void begin(const StepPlan& plan, const Scheduler& scheduler);
    // A round's draft for each of its logit rows, added to the sequences' tokens; then the next
    // round has those that may have one more, as long as their pages reach.
    void take(size_t logit_row, int32_t draft);
    void next(const Scheduler& scheduler);

    StepBatch batch() const;
    // Of the step, in later rounds of the round before: where each row of the batch comes from.
    std::span<const int32_t> rows() const { return rows_; }

  private:
    struct Row {
        Sequence* sequence;
        int64_t position;
    };
    void clear();
    void add(const Sequence& sequence, int64_t position, int32_t row);
    void want_last_row(Sequence& sequence, int64_t position);

    std::vector<int32_t> tokens_, positions_, rows_, logit_rows_;
    std::vector<int64_t> slots_;
    std::vector<SequenceRows> generated_;
    std::vector<Row> wanted_, before_;  // of the logit rows
};

}  // namespace ferry
