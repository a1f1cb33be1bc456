#include "comm/staging.h"

namespace ferry {

Buffer host_buffer_for(Device& device, size_t size_bytes) {
    if (dynamic_cast<CudaDevice*>(&device) != nullptr) return pinned_host_memory(size_bytes);
    return Buffer(cpu_device(), size_bytes);
}

Tensor with_data(const Tensor& like, void* data) {
    switch (like.rank()) {
        case 0:
            return {};
        case 1:
            return Tensor(data, like.dtype(), {like.dim(0)});
        case 2:
            return Tensor(data, like.dtype(), {like.dim(0), like.dim(1)});
        case 3:
            return Tensor(data, like.dtype(), {like.dim(0), like.dim(1), like.dim(2)});
        default:
            return Tensor(data, like.dtype(), {like.dim(0), like.dim(1), like.dim(2), like.dim(3)});
    }
}

}  // namespace ferry
