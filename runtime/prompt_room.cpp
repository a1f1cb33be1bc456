#include "runtime/prompt_room.h"

#include <algorithm>
#include <bit>

namespace ferry {

PromptRoom::PromptRoom(int64_t num_units, int64_t num_layers, int64_t max_prompts)
    : num_units_(num_units),
      num_layers_(num_layers),
      max_prompts_(static_cast<size_t>(max_prompts)) {
    places_.reserve(max_prompts_);
}

ExpandedPrompt PromptRoom::take(int64_t num_positions, const FoundPrefix& prefix) {
    if (num_positions <= 0) return {};
    if (prefix.node != 0) {
        if (Place* place = find_kept(num_positions, prefix.node)) {
            place->released = 0;
            place->prompt.num_expanded = prefix.num_positions;
            return place->prompt;
        }
        // What follows the prefix differs in length from prompt to prompt: some more for the next.
        const auto rest = static_cast<uint64_t>(num_positions - prefix.num_positions);
        const int64_t more =
            prefix.num_positions + std::max(kPageTokens, static_cast<int64_t>(std::bit_ceil(rest)));
        if (more * num_layers_ <= num_units_) num_positions = more;
    }
    const int64_t wanted = num_positions * num_layers_;
    while (places_.size() == max_prompts_ || find_gap(wanted).num_units < wanted)
        if (!evict()) break;
    if (places_.size() == max_prompts_) return {};
    const Gap gap = find_gap(wanted);
    const int64_t layers = std::min(num_layers_, gap.num_units / num_positions);
    if (layers == 0) return {};
    const ExpandedPrompt taken{
        .first_unit = gap.first_unit, .num_positions = num_positions, .num_layers = layers};
    places_.insert(places_.begin() + static_cast<std::ptrdiff_t>(gap.before),
                   {.prompt = taken, .prefix = prefix});
    return taken;
}

// One that begins with the prefix, unless it holds fewer layers than there is room for by now.
PromptRoom::Place* PromptRoom::find_kept(int64_t num_positions, int64_t node) {
    const auto place = std::ranges::find_if(places_, [&](const Place& one) {
        return one.released > 0 && one.prefix.node == node &&
               one.prompt.num_positions >= num_positions;
    });
    if (place == places_.end()) return nullptr;
    if (place->prompt.num_layers == num_layers_) return &*place;
    const Place kept = *place;
    const auto next = places_.erase(place);
    const int64_t positions = kept.prompt.num_positions;
    if (find_gap(positions * num_layers_).num_units / positions > kept.prompt.num_layers)
        return nullptr;
    return &*places_.insert(next, kept);
}

// The first that is large enough, or the largest.
PromptRoom::Gap PromptRoom::find_gap(int64_t num_units) const {
    Gap most{0, 0, 0};
    int64_t begin = 0;
    for (size_t i = 0; i <= places_.size() && most.num_units < num_units; ++i) {
        const int64_t end = i < places_.size() ? places_[i].prompt.first_unit : num_units_;
        if (end - begin > most.num_units) most = {i, begin, end - begin};
        if (i < places_.size()) begin = places_[i].end();
    }
    return most;
}

// Of the places that nobody uses, the one released first.
bool PromptRoom::evict() {
    auto first = places_.end();
    for (auto place = places_.begin(); place != places_.end(); ++place)
        if (place->released > 0 && (first == places_.end() || place->released < first->released))
            first = place;
    if (first == places_.end()) return false;
    places_.erase(first);
    return true;
}

void PromptRoom::release(ExpandedPrompt& prompt) {
    if (prompt.num_layers > 0) {
        const auto place = std::ranges::find(
            places_, prompt.first_unit, [](const Place& one) { return one.prompt.first_unit; });
        if (place->prefix.node != 0 && prompt.num_expanded >= place->prefix.num_positions)
            place->released = ++num_released_;
        else
            places_.erase(place);
    }
    prompt = {};
}

void PromptRoom::forget() {
    while (evict()) continue;
}

bool PromptRoom::has_in_use(const FoundPrefix& prefix) const {
    return std::ranges::any_of(places_, [&](const Place& place) {
        return place.released == 0 && place.prefix.node == prefix.node;
    });
}

int64_t PromptRoom::num_held() const {
    int64_t num = 0;
    for (const Place& place : places_)
        if (place.released == 0) num += place.prompt.num_units();
    return num;
}

}  // namespace ferry
