// What the model's multi-token-prediction module is given to draft (layers/mtp.h,
// AttentionWorker::draft). Plain bookkeeping, after a step's tokens are chosen.
#pragma once
#include <vector>

#include "runtime/scheduler.h"

namespace ferry {

// How often drafts about as probable were right lately: what a draft's probability, by the module,
// times those of the drafts before it, says of it. A tiny module that is unsure of all it says may
// well agree with a greedy choice, and seldom with a sampled one.
class DraftRecord {
  public:
    // Drafts are worth their row in a step if they are right at least so often.
    explicit DraftRecord(double least_rate) : least_rate_(least_rate) {}

    static uint8_t class_of(float logprob);
    // Of those that are not one is tried now and then all the same, as texts change.
    bool is_worth(uint8_t draft_class);
    void learn(uint8_t draft_class, bool right);

  private:
    struct Class {
        double num_tried = 0, num_right = 0;
        int num_left_out = 0;  // since the last one was tried
    };
    double least_rate_;
    std::array<Class, 16> classes_;
};

class DraftRounds {
  public:
    // Allocates for steps of such a scheduler.
    DraftRounds(const SchedulerOptions& options, double least_rate);

    // The first round: rows of the step whose next tokens are known, of sequences that go on. The
    // module's latents of all are written, and a draft is wanted of those that have just got a
    // token.
    void begin(const StepPlan& plan, const Scheduler& scheduler);
    // A round's draft for each of its logit rows, added to the sequences' tokens if it is worth it;
    // then the next round has those that may have one more, as long as their pages reach.
    void take(size_t logit_row, int32_t draft, float logprob);
    void next(const Scheduler& scheduler);
    // Of a sequence's drafts the first num_tried were computed, and num_right of those were right.
    void learn(const Sequence& sequence, int64_t num_tried, int64_t num_right);

    StepBatch batch() const;
    // Of the step, in later rounds of the round before: where each row of the batch comes from.
    std::span<const int32_t> rows() const { return rows_; }

  private:
    struct Row {
        Sequence* sequence;
        int64_t position;
        float logprob;  // of the drafts so far
        bool ends = false;
    };
    void clear();
    void add(const Sequence& sequence, int64_t position, int32_t row);
    void want_last_row(Sequence& sequence, int64_t position, float logprob);

    DraftRecord record_;
    std::vector<int32_t> tokens_, positions_, rows_, logit_rows_;
    std::vector<int64_t> slots_;
    std::vector<SequenceRows> generated_;
    std::vector<Row> wanted_, before_;  // of the logit rows
};

}  // namespace ferry
