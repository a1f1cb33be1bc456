#include "runtime/latent_cache.h"

#include "layers/kernels.h"

namespace ferry {
namespace {

Tensor layer_of(const OwnedTensor& storage, int64_t index) {
    const Tensor& all = storage.view();
    return all.slice_rows(index, 1).reshape({all.dim(1), all.dim(2), all.dim(3)});
}

}  // namespace

LatentCache::LatentCache(Device& device, const ModelConfig& config, const Numerics& numerics,
                         int64_t num_pages)
    : storage_(device, numerics.cache_dtype,
               {config.num_blocks(), num_pages, kPageTokens, config.latent_dim()}),
      index_keys_(device, numerics.cache_dtype,
                  {config.num_indexers(), num_pages, kPageTokens, config.index_head_dim}) {
    int64_t num = 0;
    for (int64_t layer = 0; layer < config.num_blocks(); ++layer)
        indexer_of_.push_back(config.has_indexer(layer) ? num++ : -1);
}

Tensor LatentCache::layer(int64_t index) const {
    return layer_of(storage_, index);
}

Tensor LatentCache::index_keys(int64_t layer) const {
    const int64_t indexer = indexer_of_[static_cast<size_t>(layer)];
    return indexer < 0 ? Tensor() : layer_of(index_keys_, indexer);
}

int64_t LatentCache::page_bytes(const ModelConfig& config, const Numerics& numerics) {
    return kPageTokens * ferry::size_bytes(numerics.cache_dtype) *
           (config.num_blocks() * config.latent_dim() +
            config.num_indexers() * config.index_head_dim);
}

}  // namespace ferry
