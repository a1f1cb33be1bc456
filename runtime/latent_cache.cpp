#include "runtime/latent_cache.h"

#include "layers/kernels.h"

namespace ferry {
namespace {

int64_t index_width(const ModelConfig& config) {
    return config.index_topk > 0 ? config.index_head_dim : 0;
}

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
                  {config.num_blocks(), num_pages, kPageTokens, index_width(config)}) {}

Tensor LatentCache::layer(int64_t index) const {
    return layer_of(storage_, index);
}

Tensor LatentCache::index_keys(int64_t layer) const {
    return layer_of(index_keys_, layer);
}

int64_t LatentCache::page_bytes(const ModelConfig& config, const Numerics& numerics) {
    return config.num_blocks() * kPageTokens * (config.latent_dim() + index_width(config)) *
           ferry::size_bytes(numerics.cache_dtype);
}

}  // namespace ferry
