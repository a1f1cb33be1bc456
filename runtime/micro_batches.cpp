#include "runtime/micro_batches.h"

#include <algorithm>

namespace ferry {
namespace {

// The rows of `all` that fall into [begin, end), numbered from begin.
void cut(std::span<const SequenceRows> all, int64_t begin, int64_t end,
         std::vector<SequenceRows>& out) {
    out.clear();
    for (const SequenceRows& rows : all) {
        const int64_t first = std::max(rows.first_row, begin);
        const int64_t last = std::min(rows.first_row + rows.num_rows, end);
        if (first >= last) continue;
        out.push_back({.first_row = first - begin,
                       .num_rows = last - first,
                       .first_position = rows.first_position + (first - rows.first_row),
                       .pages = rows.pages,
                       .expanded = rows.expanded});
        // Rows in front of these come first in every layer.
        if (first > rows.first_row) out.back().expanded.num_expanded = out.back().first_position;
    }
}

// Those of `rows`, numbered as in a step whose row `first_row` is row 0 of the sequences, that are
// rows of the sequences.
void pick(std::span<const SequenceRows> all, int64_t first_row, std::span<const int32_t> rows,
          std::vector<SequenceRows>& out) {
    out.clear();
    for (const SequenceRows& sequence : all) {
        const int64_t begin = first_row + sequence.first_row;
        const auto first = std::ranges::lower_bound(rows, begin);
        const auto last = std::ranges::lower_bound(rows, begin + sequence.num_rows);
        for (auto row = first; row != last; ++row) {
            if (row != first && *row == row[-1] + 1) {
                ++out.back().num_rows;
                continue;
            }
            out.push_back({.first_row = row - rows.begin(),
                           .num_rows = 1,
                           .first_position = sequence.first_position + (*row - begin),
                           .pages = sequence.pages,
                           .expanded = sequence.expanded});
        }
    }
}

}  // namespace

StepPart::StepPart(int64_t max_sequences) {
    prompt_.reserve(2 * static_cast<size_t>(max_sequences));
    generated_.reserve(static_cast<size_t>(max_sequences));
}

void StepPart::take(const StepBatch& step, int64_t begin, int64_t end) {
    const size_t first = static_cast<size_t>(begin), count = static_cast<size_t>(end - begin);
    cut(step.prompt, begin, end, prompt_);
    cut(step.generated, begin, end, generated_);
    first_row_ = begin;
    batch_ = {.tokens = step.tokens.subspan(first, count),
              .positions = step.positions.subspan(first, count),
              .slots = step.slots.subspan(first, count),
              .prompt = prompt_,
              .generated = generated_,
              .logit_rows = {},
              .most_keys = step.most_keys};
}

PickedRows::PickedRows(int64_t max_rows) {
    const auto rows = static_cast<size_t>(max_rows);
    tokens_.reserve(rows);
    positions_.reserve(rows);
    prompt_.reserve(rows);
    generated_.reserve(rows);
}

void PickedRows::take(const StepBatch& part, int64_t first_row, std::span<const int32_t> rows) {
    tokens_.clear();
    positions_.clear();
    for (const int32_t row : rows) {
        tokens_.push_back(part.tokens[static_cast<size_t>(row - first_row)]);
        positions_.push_back(part.positions[static_cast<size_t>(row - first_row)]);
    }
    pick(part.prompt, first_row, rows, prompt_);
    pick(part.generated, first_row, rows, generated_);
    batch_ = {.tokens = tokens_,
              .positions = positions_,
              .slots = {},
              .prompt = prompt_,
              .generated = generated_,
              .logit_rows = {},
              .most_keys = part.most_keys};
}

MicroBatches::MicroBatches(int num, int64_t max_tokens, int64_t max_sequences,
                           int64_t max_logit_rows)
    : logit_rows_(static_cast<size_t>(num)) {
    for (int i = 0; i < num; ++i) {
        parts_.emplace_back(std::min(max_tokens, max_sequences));
        wanted_.emplace_back(max_logit_rows);
    }
}

void MicroBatches::split(const StepBatch& step) {
    const int64_t tokens = step.num_tokens(), n = num();
    const auto logit_row = [&](int64_t row) {
        return std::ranges::lower_bound(step.logit_rows, row) - step.logit_rows.begin();
    };
    for (int64_t i = 0; i < n; ++i) {
        const int64_t begin = tokens * i / n, end = tokens * (i + 1) / n;
        StepPart& part = parts_[static_cast<size_t>(i)];
        part.take(step, begin, end);
        const Range rows{logit_row(begin), logit_row(end) - logit_row(begin)};
        logit_rows_[static_cast<size_t>(i)] = rows;
        if (rows.num < end - begin)
            wanted_[static_cast<size_t>(i)].take(
                part.batch(), begin,
                step.logit_rows.subspan(static_cast<size_t>(rows.begin),
                                        static_cast<size_t>(rows.num)));
    }
}

const StepBatch& MicroBatches::wanted(int index) const {
    const bool all = logit_rows(index).num == batch(index).num_tokens();
    return all ? batch(index) : wanted_[static_cast<size_t>(index)].batch();
}

}  // namespace ferry
