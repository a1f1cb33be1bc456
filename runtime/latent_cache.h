// The memory of MLA's latent cache: per layer and page 64 tokens of kv_lora_rank + qk_rope_head_dim
// values, and, of layers with an indexer, index_head_dim values of its keys.
#pragma once
#include "base/buffer.h"
#include "layers/model_config.h"
#include "layers/numerics.h"

namespace ferry {

class LatentCache {
  public:
    // Throws Error(memory) with the number of bytes.
    LatentCache(Device& device, const ModelConfig& config, const Numerics& numerics,
                int64_t num_pages);

    // [pages, 64, kv_lora + rope] of one layer.
    Tensor layer(int64_t index) const;
    // [pages, 64, index_head_dim] of one layer; of those without an indexer empty.
    Tensor index_keys(int64_t layer) const;
    int64_t num_pages() const { return storage_.view().dim(1); }
    size_t size_bytes() const { return storage_.size_bytes() + index_keys_.size_bytes(); }

    // Bytes of one page over all layers.
    static int64_t page_bytes(const ModelConfig& config, const Numerics& numerics);

  private:
    OwnedTensor storage_;              // [layers, pages, 64, latent_dim]
    OwnedTensor index_keys_;           // [indexers, pages, 64, index_head_dim]
    std::vector<int64_t> indexer_of_;  // of each layer, counted; -1: none
};

}  // namespace ferry
