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
                       .pages = rows.pages});
    }
}

}  // namespace

StepPart::StepPart(int64_t max_sequences) {
    prompt_.reserve(static_cast<size_t>(max_sequences));
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
              .logit_rows = {}};
}

MicroBatches::MicroBatches(int num, int64_t max_tokens, int64_t max_sequences) {
    for (int i = 0; i < num; ++i) parts_.emplace_back(std::min(max_tokens, max_sequences));
}

void MicroBatches::split(const StepBatch& step) {
    const int64_t tokens = step.num_tokens(), n = num();
    for (int64_t i = 0; i < n; ++i)
        parts_[static_cast<size_t>(i)].take(step, tokens * i / n, tokens * (i + 1) / n);
}

}  // namespace ferry
