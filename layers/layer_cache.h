// What one layer's attention keeps from step to step.
#pragma once
#include "layers/kernels.h"

namespace ferry {

struct LayerCache {
    LayerCache(const Tensor& of_latents) : latents(of_latents) {}
    LayerCache(const Tensor& of_latents, const Tensor& of_index_keys, const Tensor& of_expanded,
               int64_t index)
        : latents(of_latents), index_keys(of_index_keys), expanded(of_expanded), layer(index) {}

    Tensor latents;       // [pages, kPageTokens, kv_lora + rope], f32 or bf16
    Tensor index_keys{};  // [pages, kPageTokens, index_head_dim], of sparse attention, alike
    Tensor expanded{};  // [units, Mla::expanded_values()] of all layers; ExpandedPrompt says whose
    int64_t layer = 0;
};

}  // namespace ferry
