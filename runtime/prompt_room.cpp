#include "runtime/prompt_room.h"

#include <algorithm>

namespace ferry {

PromptRoom::PromptRoom(int64_t num_units, int64_t num_layers, int64_t max_prompts)
    : num_units_(num_units),
      num_layers_(num_layers),
      max_prompts_(static_cast<size_t>(max_prompts)) {
    held_.reserve(max_prompts_);
}

// The first gap that is large enough, or the largest.
ExpandedPrompt PromptRoom::take(int64_t num_positions) {
    if (held_.size() == max_prompts_ || num_positions <= 0) return {};
    const int64_t wanted = num_positions * num_layers_;
    int64_t begin = 0, first_unit = 0, most = 0;
    size_t place = 0;
    for (size_t i = 0; i <= held_.size() && most < wanted; ++i) {
        const int64_t end = i < held_.size() ? held_[i].first_unit : num_units_;
        if (end - begin > most) {
            first_unit = begin;
            most = end - begin;
            place = i;
        }
        if (i < held_.size()) begin = end + held_[i].num_units();
    }
    const int64_t layers = std::min(num_layers_, most / num_positions);
    if (layers == 0) return {};
    const ExpandedPrompt taken{
        .first_unit = first_unit, .num_positions = num_positions, .num_layers = layers};
    held_.insert(held_.begin() + static_cast<std::ptrdiff_t>(place), taken);
    return taken;
}

void PromptRoom::release(ExpandedPrompt& prompt) {
    if (prompt.num_layers > 0)
        std::erase_if(held_, [&](const ExpandedPrompt& held) {
            return held.first_unit == prompt.first_unit;
        });
    prompt = {};
}

int64_t PromptRoom::num_held() const {
    int64_t num = 0;
    for (const ExpandedPrompt& prompt : held_) num += prompt.num_units();
    return num;
}

}  // namespace ferry
