#include "runtime/hidden_rows.h"

namespace ferry {

HiddenRows::HiddenRows(Device& device, const ModelConfig& config, int64_t max_tokens,
                       int64_t expanded_keys)
    : hidden_(device, DType::f32, {max_tokens, config.dim}),
      chosen_lists_(device, DType::i32, {max_tokens, config.index_topk}),
      chosen_masks_(device, DType::i32,
                    {max_tokens, KeyChoice::mask_words(config, expanded_keys)}) {}

HiddenRows::Rows HiddenRows::rows(int64_t begin, int64_t num) const {
    const auto slice = [&](const OwnedTensor& all) { return all.view().slice_rows(begin, num); };
    return {.h = slice(hidden_),
            .choice = {.lists = slice(chosen_lists_), .masks = slice(chosen_masks_)}};
}

int64_t HiddenRows::size_bytes(const ModelConfig& config, int64_t max_tokens,
                               int64_t expanded_keys) {
    return 4 * max_tokens *
           (config.dim + config.index_topk + KeyChoice::mask_words(config, expanded_keys));
}

}  // namespace ferry
