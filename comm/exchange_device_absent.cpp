// exchange_device.h in a build without CUDA.
#include "base/error.h"
#include "comm/exchange_device.h"

namespace ferry {

std::unique_ptr<Exchange> make_device_exchange(const ExchangeSetup&, BlockTransport&) {
    throw Error(ErrorKind::usage,
                "this Ferry was built without CUDA (nvcc was not found, or -DFERRY_CUDA=OFF)");
}
std::unique_ptr<BlockTransport> make_self_blocks(CudaDevice&) {
    throw Error(ErrorKind::usage,
                "this Ferry was built without CUDA (nvcc was not found, or -DFERRY_CUDA=OFF)");
}

}  // namespace ferry
