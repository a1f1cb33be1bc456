#include "runtime/filled_step.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace ferry {

bool is_decode_step(const StepBatch& batch) {
    const size_t rows = batch.tokens.size();
    return rows > 0 && batch.prompt.empty() && batch.logit_rows.size() == rows;
}

int64_t filled_rows(int64_t num_rows) {
    const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_rows)));
    if (power <= 8) return power;
    const int64_t multiple = std::max<int64_t>(8, power / 16);
    return ceil_div(num_rows, multiple) * multiple;
}

namespace {

constexpr int64_t kLeastKeys = 1024;  // of a form

}  // namespace

StepForm form_of(int64_t num_rows, int64_t max_rows, int64_t num_keys) {
    const auto keys = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_keys)));
    return {.num_rows = std::min(filled_rows(num_rows), max_rows),
            .num_keys = std::max(keys, kLeastKeys)};
}

int64_t num_forms(int64_t max_rows, int64_t max_keys) {
    int64_t num_sizes = 0, num_lengths = 0;
    for (int64_t rows = 1; rows <= max_rows; rows = filled_rows(rows) + 1) ++num_sizes;
    for (int64_t keys = 1; keys <= max_keys; keys = form_of(1, 1, keys).num_keys + 1) ++num_lengths;
    return num_sizes * num_lengths;
}

// Keys in unary, whose bit-wise or is the maximum.
Agreement say_form(const StepForm& form) {
    const int doublings = std::countr_zero(static_cast<uint64_t>(form.num_keys / kLeastKeys));
    FERRY_CHECK(doublings < 32 - kFirstFormBit, "{} keys", form.num_keys);
    return {.any = ((uint32_t{1} << doublings) - 1) << kFirstFormBit,
            .max = static_cast<uint32_t>(form.num_rows)};
}

StepForm agreed_form(Agreement agreed) {
    if (agreed.max == 0 || agreed.max == kAnyForm) return {};
    const int doublings = std::popcount(agreed.any >> kFirstFormBit);
    return {.num_rows = static_cast<int64_t>(agreed.max), .num_keys = kLeastKeys << doublings};
}

FilledStep::FilledStep(int64_t max_rows)
    : tokens_(static_cast<size_t>(max_rows)),
      positions_(static_cast<size_t>(max_rows)),
      logit_rows_(static_cast<size_t>(max_rows)),
      slots_(static_cast<size_t>(max_rows)),
      generated_(static_cast<size_t>(max_rows)) {
    std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
}

const StepBatch& FilledStep::fill(const StepBatch& batch, const StepForm& form) {
    const auto own = static_cast<size_t>(batch.num_tokens());
    const auto all = static_cast<size_t>(form.num_rows);
    FERRY_CHECK(own <= all && all <= tokens_.size(), "{} rows filled up to {} of {}", own, all,
                tokens_.size());
    std::ranges::copy(batch.tokens, tokens_.begin());
    std::ranges::copy(batch.positions, positions_.begin());
    std::ranges::copy(batch.slots, slots_.begin());
    for (const SequenceRows& rows : batch.generated)
        for (int64_t row = 0; row < rows.num_rows; ++row)
            generated_[static_cast<size_t>(rows.first_row + row)] = {
                .first_row = rows.first_row + row,
                .num_rows = 1,
                .first_position = rows.first_position + row,
                .pages = rows.pages};
    for (size_t i = own; i < all; ++i) {
        tokens_[i] = positions_[i] = 0;  // of any row: nothing is made of them
        slots_[i] = kNoSlot;
        generated_[i] = {
            .first_row = static_cast<int64_t>(i), .num_rows = 1, .first_position = -1, .pages = {}};
    }
    batch_ = {.tokens = std::span(tokens_).first(all),
              .positions = std::span(positions_).first(all),
              .slots = std::span(slots_).first(all),
              .prompt = {},
              .generated = std::span(generated_).first(all),
              .logit_rows = std::span(logit_rows_).first(all),
              .most_keys = form.num_keys};
    return batch_;
}

}  // namespace ferry
