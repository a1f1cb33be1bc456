#include "base/zones_cuda.h"

#if FERRY_HAS_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

#include <array>
#include <cstdio>

namespace ferry {

void GpuZones::begin([[maybe_unused]] Zone zone, [[maybe_unused]] int layer,
                     [[maybe_unused]] int micro_batch) {
#if FERRY_HAS_CUDA
    std::array<char, 64> name{};
    const std::string_view text = to_string(zone);
    if (layer < 0)
        std::snprintf(name.data(), name.size(), "%.*s", static_cast<int>(text.size()), text.data());
    else
        std::snprintf(name.data(), name.size(), "%.*s layer %d micro-batch %d",
                      static_cast<int>(text.size()), text.data(), layer, micro_batch);
    nvtxRangePushA(name.data());
#endif
}

void GpuZones::end() {
    if (wait_for_ != nullptr) wait_for_->synchronize();
#if FERRY_HAS_CUDA
    nvtxRangePop();
#endif
}

}  // namespace ferry
