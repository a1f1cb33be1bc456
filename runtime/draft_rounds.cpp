#include "runtime/draft_rounds.h"

#include <algorithm>
#include <cmath>

namespace ferry {

// From 1 down, each a factor of 2^(1/2) wide.
uint8_t DraftRecord::class_of(float logprob) {
    const double halves = -2 * std::log2(std::exp(1.0)) * double{logprob};
    return static_cast<uint8_t>(halves < 15 ? std::max(halves, 0.0) : 15);  // also if it is NaN
}

bool DraftRecord::is_worth(uint8_t draft_class) {
    constexpr double kUnknown = 4;  // as if so many had been right
    constexpr int kSomeLeftOut = 15;
    Class& c = classes_[draft_class];
    const bool right_enough = c.num_right + kUnknown >= least_rate_ * (c.num_tried + kUnknown);
    if (!right_enough && c.num_left_out++ < kSomeLeftOut) return false;
    c.num_left_out = 0;
    return true;
}

void DraftRecord::learn(uint8_t draft_class, bool right) {
    constexpr double kLately = 128;
    Class& c = classes_[draft_class];
    if (c.num_tried >= kLately) {
        c.num_tried /= 2;
        c.num_right /= 2;
    }
    ++c.num_tried;
    if (right) ++c.num_right;
}

DraftRounds::DraftRounds(const SchedulerOptions& options, double least_rate) : record_(least_rate) {
    const auto rows = static_cast<size_t>(options.max_batch_tokens);
    const auto sequences = static_cast<size_t>(options.max_batch);
    for (auto* list : {&tokens_, &positions_, &rows_}) list->reserve(rows);
    slots_.reserve(rows);
    logit_rows_.reserve(sequences);
    generated_.reserve(3 * sequences);  // a sequence may have rows of all kinds
    wanted_.reserve(sequences);
    before_.reserve(sequences);
}

void DraftRounds::clear() {
    for (auto* list : {&tokens_, &positions_, &rows_, &logit_rows_}) list->clear();
    slots_.clear();
    generated_.clear();
    wanted_.clear();
}

void DraftRounds::add(const Sequence& sequence, int64_t position, int32_t row) {
    tokens_.push_back(sequence.tokens[static_cast<size_t>(position) + 1]);
    positions_.push_back(static_cast<int32_t>(position));
    slots_.push_back(sequence.pages[static_cast<size_t>(position / kPageTokens)] * kPageTokens +
                     position % kPageTokens);
    rows_.push_back(row);
}

void DraftRounds::want_last_row(Sequence& sequence, int64_t position, float logprob) {
    logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    wanted_.push_back({&sequence, position, logprob});
}

void DraftRounds::begin(const StepPlan& plan, const Scheduler& scheduler) {
    clear();
    const auto add_rows = [&](const std::vector<SequenceRows>& list,
                              const std::vector<Sequence*>& sequences) {
        for (size_t i = 0; i < list.size(); ++i) {
            if (sequences[i] == nullptr) continue;
            const SequenceRows& rows = list[i];
            Sequence& sequence = *sequences[i];
            const int64_t last = sequence.length() - 2;  // whose next token is the last
            const int64_t end = std::min(rows.end_position(), last + 1);
            if (end <= rows.first_position) continue;
            generated_.push_back({.first_row = static_cast<int64_t>(tokens_.size()),
                                  .num_rows = end - rows.first_position,
                                  .first_position = rows.first_position,
                                  .pages = sequence.pages});
            for (int64_t position = rows.first_position; position < end; ++position)
                add(sequence, position,
                    static_cast<int32_t>(rows.first_row + position - rows.first_position));
            const bool got_token = sequence.length() > sequence.prompt_length;
            if (got_token && end == last + 1 && scheduler.max_drafts(sequence) > 0)
                want_last_row(sequence, last, 0);
        }
    };
    add_rows(plan.prompt, plan.prompt_sequences);
    add_rows(plan.generated, plan.generated_sequences);
}

void DraftRounds::take(size_t logit_row, int32_t draft, float logprob) {
    Row& row = wanted_[logit_row];
    row.logprob += logprob;
    const uint8_t draft_class = DraftRecord::class_of(row.logprob);
    row.ends = !record_.is_worth(draft_class);
    if (row.ends) return;
    Sequence& sequence = *row.sequence;
    sequence.draft_classes[static_cast<size_t>(sequence.num_drafts++)] = draft_class;
    sequence.tokens.push_back(draft);
}

void DraftRounds::learn(const Sequence& sequence, int64_t num_tried, int64_t num_right) {
    for (int64_t i = 0; i < num_tried; ++i)
        record_.learn(sequence.draft_classes[static_cast<size_t>(i)], i < num_right);
}

void DraftRounds::next(const Scheduler& scheduler) {
    std::swap(before_, wanted_);
    clear();
    for (size_t i = 0; i < before_.size(); ++i) {
        Sequence& sequence = *before_[i].sequence;
        const int64_t position = before_[i].position + 1;
        if (before_[i].ends || sequence.num_drafts >= scheduler.max_drafts(sequence) ||
            position >= static_cast<int64_t>(sequence.pages.size()) * kPageTokens)
            continue;
        generated_.push_back({.first_row = static_cast<int64_t>(tokens_.size()),
                              .num_rows = 1,
                              .first_position = position,
                              .pages = sequence.pages});
        add(sequence, position, static_cast<int32_t>(i));
        want_last_row(sequence, position, before_[i].logprob);
    }
}

StepBatch DraftRounds::batch() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .slots = slots_,
            .prompt = {},
            .generated = generated_,
            .logit_rows = logit_rows_};
}

}  // namespace ferry
