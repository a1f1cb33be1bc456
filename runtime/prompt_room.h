// Which prompts stay expanded from chunk to chunk (ExpandedPrompt), and where; of those that began
// with a prefix that others may begin with, for the next one as well. Pure bookkeeping.
#pragma once
#include <vector>

#include "layers/kernels.h"

namespace ferry {

// What a prompt begins with that was in the cache already: PageAllocator::node, 0 for nothing.
struct FoundPrefix {
    int64_t node = 0;
    int64_t num_positions = 0;
};

class PromptRoom {
  public:
    // Room for so many positions, of one layer each, of a model of `num_layers`, for at most
    // `max_prompts` at once.
    PromptRoom(int64_t num_units, int64_t num_layers, int64_t max_prompts);

    // For a prompt of so many positions, in all layers or as many as there is room for, which may
    // be none. To be released. Where a prompt with the same prefix was before, that one's prefix is
    // expanded already.
    ExpandedPrompt take(int64_t num_positions, const FoundPrefix& prefix = {});
    // What is left holds nothing. Its place stays as it is for prompts with the same prefix, until
    // others need it (the one released first goes first), if the prefix was expanded in it.
    void release(ExpandedPrompt& prompt);
    // What stays for prompts with the same prefix goes.
    void forget();
    // A prompt that has room began with this prefix.
    bool has_in_use(const FoundPrefix& prefix) const;

    int64_t num_held() const;  // units, of prompts that were not released

  private:
    struct Place {
        ExpandedPrompt prompt;
        FoundPrefix prefix;
        int64_t released = 0;  // 0: in use; otherwise in this order

        int64_t end() const { return prompt.first_unit + prompt.num_units(); }
    };
    struct Gap {
        size_t before;  // index in places_
        int64_t first_unit, num_units;
    };
    Place* find_kept(int64_t num_positions, int64_t node);
    Gap find_gap(int64_t num_units) const;
    bool evict();

    int64_t num_units_, num_layers_;
    size_t max_prompts_;
    int64_t num_released_ = 0;
    std::vector<Place> places_;  // by first_unit
};

}  // namespace ferry
