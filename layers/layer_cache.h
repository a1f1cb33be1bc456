// What attention keeps: of one layer from step to step, and from layer to layer of a step.
#pragma once
#include "layers/kernels.h"

namespace ferry {

// Of sparse attention: which keys the rows of a batch attend to, chosen by a layer with an indexer,
// for itself and the layers behind it that have none. Rows of at most index_topk keys take all of
// them, whatever is here.
struct KeyChoice {
    Tensor lists;  // [rows, index_topk] i32, KeySelection::chosen of rows of the absorbed form
    Tensor masks;  // [rows, words] i32, KeySelection::mask of rows of the expanded form

    // Of a row that sees at most so many keys in the expanded form; 0: none has more than it takes.
    static int64_t mask_words(const ModelConfig& config, int64_t expanded_keys) {
        return expanded_keys > config.dense_positions() ? 2 * ceil_div(expanded_keys, kPageTokens)
                                                        : 0;
    }
};

struct LayerCache {
    LayerCache(const Tensor& of_latents) : latents(of_latents) {}
    LayerCache(const Tensor& of_latents, const Tensor& of_index_keys, const Tensor& of_expanded,
               const KeyChoice& of_rows, int64_t index)
        : latents(of_latents),
          index_keys(of_index_keys),
          expanded(of_expanded),
          choice(of_rows),
          layer(index) {}

    Tensor latents;       // [pages, kPageTokens, kv_lora + rope], f32 or bf16
    Tensor index_keys{};  // [pages, kPageTokens, index_head_dim], of a layer with an indexer, alike
    Tensor expanded{};  // [units, Mla::expanded_values()] of all layers; ExpandedPrompt says whose
    KeyChoice choice{};
    int64_t layer = 0;
};

}  // namespace ferry
