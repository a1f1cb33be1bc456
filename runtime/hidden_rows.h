// What a step's rows carry from layer to layer.
#pragma once
#include "base/buffer.h"
#include "layers/layer_cache.h"

namespace ferry {

class HiddenRows {
  public:
    // `expanded_keys`: that a row of the expanded form may see.
    HiddenRows(Device& device, const ModelConfig& config, int64_t max_tokens,
               int64_t expanded_keys);

    struct Rows {
        Tensor h;  // [rows, dim] residual stream
        KeyChoice choice;
    };
    Rows rows(int64_t begin, int64_t num) const;
    const Tensor& h() const { return hidden_.view(); }

    static int64_t size_bytes(const ModelConfig& config, int64_t max_tokens, int64_t expanded_keys);

  private:
    OwnedTensor hidden_, chosen_lists_, chosen_masks_;
};

}  // namespace ferry
