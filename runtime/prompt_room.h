// Which prompts stay expanded from chunk to chunk (ExpandedPrompt), and where. Pure bookkeeping.
#pragma once
#include <vector>

#include "layers/kernels.h"

namespace ferry {

class PromptRoom {
  public:
    // Room for so many positions, of one layer each, of a model of `num_layers`, for at most
    // `max_prompts` at once.
    PromptRoom(int64_t num_units, int64_t num_layers, int64_t max_prompts);

    // For a prompt of so many positions, in all layers or as many as there is room for, which may
    // be none. To be released.
    ExpandedPrompt take(int64_t num_positions);
    void release(ExpandedPrompt& prompt);  // what is left holds nothing

    int64_t num_held() const;  // units

  private:
    int64_t num_units_, num_layers_;
    size_t max_prompts_;
    std::vector<ExpandedPrompt> held_;  // by first_unit
};

}  // namespace ferry
