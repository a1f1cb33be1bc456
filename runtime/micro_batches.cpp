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

MicroBatches::MicroBatches(int num, int64_t max_tokens, int64_t max_sequences) {
    parts_.resize(static_cast<size_t>(num));
    const size_t pieces = static_cast<size_t>(std::min(max_tokens, max_sequences));
    for (Part& part : parts_) {
        part.prompt.reserve(pieces);
        part.generated.reserve(pieces);
    }
}

void MicroBatches::split(const StepBatch& step) {
    const int64_t tokens = step.num_tokens(), n = num();
    for (int64_t i = 0; i < n; ++i) {
        Part& part = parts_[static_cast<size_t>(i)];
        const int64_t begin = tokens * i / n, end = tokens * (i + 1) / n;
        const size_t first = static_cast<size_t>(begin), count = static_cast<size_t>(end - begin);
        cut(step.prompt, begin, end, part.prompt);
        cut(step.generated, begin, end, part.generated);
        part.first_row = begin;
        part.batch = {.tokens = step.tokens.subspan(first, count),
                      .positions = step.positions.subspan(first, count),
                      .slots = step.slots.subspan(first, count),
                      .prompt = part.prompt,
                      .generated = part.generated,
                      .logit_rows = {}};
    }
}

}  // namespace ferry
