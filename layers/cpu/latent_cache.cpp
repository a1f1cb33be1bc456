#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::write_cache(const Tensor& latent, std::span<const int64_t> slots,
                             const Tensor& cache) {
    const int64_t width = cache.dim(2);
    check_shape(latent, "latent", DType::f32, {static_cast<int64_t>(slots.size()), width});
    for (size_t row = 0; row < slots.size(); ++row) {
        const float* from = latent.row<float>(static_cast<int64_t>(row));
        const int64_t to = slots[row] * width;
        for (int64_t i = 0; i < width; ++i) {
            if (cache.dtype() == DType::f32)
                cache.as<float>()[to + i] = from[i];
            else
                cache.as<uint16_t>()[to + i] = f32_to_bf16(from[i]);
        }
    }
}

void CpuKernels::read_cache(const Tensor& cache, std::span<const int32_t> pages,
                            const Tensor& out) {
    const int64_t width = cache.dim(2);
    for (int64_t position = 0; position < out.rows(); ++position) {
        const int64_t page = pages[static_cast<size_t>(position / kPageTokens)];
        const int64_t from = (page * kPageTokens + position % kPageTokens) * width;
        for (int64_t i = 0; i < width; ++i)
            out.row<float>(position)[i] = cache.dtype() == DType::f32
                                              ? cache.as<float>()[from + i]
                                              : bf16_to_f32(cache.as<uint16_t>()[from + i]);
    }
}

}  // namespace ferry
