#include <algorithm>

#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/latent_cache.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// `row` of the cache, counted through all pages.
void write_row(const float* from, const Tensor& cache, int64_t row) {
    const int64_t width = cache.dim(2);
    if (cache.dtype() == DType::f32)
        std::copy_n(from, width, cache.as<float>() + row * width);
    else
        narrow_bf16(from, width, cache.as<uint16_t>() + row * width);
}

void read_row(const Tensor& cache, int64_t row, float* to) {
    const int64_t width = cache.dim(2);
    if (cache.dtype() == DType::f32)
        std::copy_n(cache.as<float>() + row * width, width, to);
    else
        widen_bf16(cache.as<uint16_t>() + row * width, width, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(write_row);
HWY_EXPORT(read_row);

void check_cache(const Tensor& cache, int64_t width) {
    FERRY_CHECK(cache.dtype() == DType::f32 || cache.dtype() == DType::bf16, "cache is {}",
                cache.describe());
    check_shape(cache, "cache", cache.dtype(), {cache.dim(0), kPageTokens, width});
}

}  // namespace

void CpuKernels::write_cache(const Tensor& latent, std::span<const int64_t> slots,
                             const Tensor& cache) {
    const auto rows = static_cast<int64_t>(slots.size());
    check_shape(latent, "latent", DType::f32, {rows, cache.dim(2)});
    check_cache(cache, cache.dim(2));
    const auto write = &HWY_DYNAMIC_DISPATCH(write_row);
    threads_.parallel_for(ceil_div(rows, kPageTokens), [&](int64_t block, int) {
        const int64_t end = std::min(rows, (block + 1) * kPageTokens);
        for (int64_t row = block * kPageTokens; row < end; ++row)
            write(latent.row<float>(row), cache, slots[static_cast<size_t>(row)]);
    });
}

void CpuKernels::rope_write_cache(const Tensor& latent, std::span<const int32_t> positions,
                                  const Tensor& table, bool interleave,
                                  std::span<const int64_t> slots, const Tensor& cache) {
    rope(latent.reshape({latent.rows(), 1, latent.dim(1)}), latent.dim(1) - table.dim(1), positions,
         table, interleave);
    write_cache(latent, slots, cache);
}

void CpuKernels::read_cache(const Tensor& cache, std::span<const int32_t> pages, int64_t first,
                            const Tensor& out) {
    check_shape(out, "out", DType::f32, {out.rows(), cache.dim(2)});
    check_cache(cache, cache.dim(2));
    FERRY_CHECK(
        first >= 0 && static_cast<int64_t>(pages.size()) * kPageTokens >= first + out.rows(),
        "{} pages for positions {}+{}", pages.size(), first, out.rows());
    const auto read = &HWY_DYNAMIC_DISPATCH(read_row);
    threads_.parallel_for(ceil_div(out.rows(), kPageTokens), [&](int64_t block, int) {
        const int64_t end = std::min(out.rows(), (block + 1) * kPageTokens);
        for (int64_t row = block * kPageTokens; row < end; ++row) {
            const int64_t position = first + row;
            const int64_t page = pages[static_cast<size_t>(position / kPageTokens)];
            read(cache, page * kPageTokens + position % kPageTokens, out.row<float>(row));
        }
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
