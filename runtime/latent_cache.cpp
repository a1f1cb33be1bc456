#include "runtime/latent_cache.h"

#include "layers/kernels.h"

namespace ferry {

LatentCache::LatentCache(Device& device, const ModelConfig& config, const Numerics& numerics,
                         int64_t num_pages)
    : storage_(device, numerics.cache_dtype,
               {config.num_blocks(), num_pages, kPageTokens, config.latent_dim()}) {}

Tensor LatentCache::layer(int64_t index) const {
    const Tensor& all = storage_.view();
    return all.slice_rows(index, 1).reshape({all.dim(1), all.dim(2), all.dim(3)});
}

int64_t LatentCache::page_bytes(const ModelConfig& config, const Numerics& numerics) {
    return config.num_blocks() * kPageTokens * config.latent_dim() *
           ferry::size_bytes(numerics.cache_dtype);
}

}  // namespace ferry
