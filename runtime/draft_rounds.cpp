#include "runtime/draft_rounds.h"

namespace ferry {

DraftRounds::DraftRounds(const SchedulerOptions& options) {
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

void DraftRounds::want_last_row(Sequence& sequence, int64_t position) {
    logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    wanted_.push_back({&sequence, position});
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
                want_last_row(sequence, last);
        }
    };
    add_rows(plan.prompt, plan.prompt_sequences);
    add_rows(plan.generated, plan.generated_sequences);
}

void DraftRounds::take(size_t logit_row, int32_t draft) {
    Sequence& sequence = *wanted_[logit_row].sequence;
    sequence.tokens.push_back(draft);
    ++sequence.num_drafts;
}

void DraftRounds::next(const Scheduler& scheduler) {
    std::swap(before_, wanted_);
    clear();
    for (size_t i = 0; i < before_.size(); ++i) {
        Sequence& sequence = *before_[i].sequence;
        const int64_t position = before_[i].position + 1;
        if (sequence.num_drafts >= scheduler.max_drafts(sequence) ||
            position >= static_cast<int64_t>(sequence.pages.size()) * kPageTokens)
            continue;
        generated_.push_back({.first_row = static_cast<int64_t>(tokens_.size()),
                              .num_rows = 1,
                              .first_position = position,
                              .pages = sequence.pages});
        add(sequence, position, static_cast<int32_t>(i));
        want_last_row(sequence, position);
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
