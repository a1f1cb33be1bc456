#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

// Writes rows to pages in no order, reads a sequence back in two parts, for both cache types.
void write_and_read(Kernels& kernels, const Tensor& latent, const Tensor& cache,
                    const std::vector<int64_t>& slots, const std::vector<int32_t>& pages,
                    const Tensor& out) {
    kernels.fill_zero(cache);
    kernels.write_cache(latent, slots, cache);
    const int64_t first = out.rows() / 3;
    kernels.read_cache(cache, pages, 0, out.slice_rows(0, first));
    kernels.read_cache(cache, pages, first, out.slice_rows(first, out.rows() - first));
}

TEST(CudaLatentCache, WritesAndReadsTheBitsOfTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    const std::vector<int32_t> pages{3, 0, 2};
    for (DType dtype : {DType::f32, DType::bf16})
        for (int64_t width : {5, 24, 576})
            for (int64_t rows : {0, 1, 150}) {
                SCOPED_TRACE(fmt::format("{} rows of {} {}", rows, width, to_string(dtype)));
                std::vector<int64_t> slots;
                for (int64_t i = 0; i < rows; ++i)
                    slots.push_back(pages[static_cast<size_t>(i / kPageTokens)] * kPageTokens +
                                    i % kPageTokens);
                const Matrix latent(rows, width, 1);
                Matrix out(rows, width);
                OwnedTensor cache(cpu_device(), dtype, {4, kPageTokens, width});
                write_and_read(*cpu, latent.view, cache, slots, pages, out.view);
                const CudaTensor latent_device(latent), out_device(DType::f32, {rows, width});
                const CudaTensor cache_device(dtype, {4, kPageTokens, width});
                write_and_read(cuda_kernels(), latent_device, cache_device, slots, pages,
                               out_device);
                expect_same_bits(out_device.values(), out.values);
            }
}

TEST(CudaLatentCache, RotatesAndWritesTheBitsOfTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    const std::vector<int32_t> page{1}, positions{5, 0, 31, 7, 7};
    const std::vector<int64_t> slots{67, 64, 65, 68, 66};
    for (DType dtype : {DType::f32, DType::bf16})
        for (bool interleave : {true, false})
            for (const auto& [width, r] : {std::pair{7, 2}, {24, 10}, {32, 32}, {576, 64}})
                for (int64_t rows : {0, 1, 5}) {
                    SCOPED_TRACE(fmt::format("{} rows of {}, {} rotated, {}, interleave {}", rows,
                                             width, r, to_string(dtype), interleave));
                    const auto num = static_cast<size_t>(rows);
                    const std::span used(positions.data(), num);
                    const std::span to(slots.data(), num);
                    const Matrix latent(rows, width, 1), table(32, r, 9);
                    const CudaTensor latent_device(latent), table_device(table);
                    Matrix out(5, width);
                    OwnedTensor cache(cpu_device(), dtype, {2, kPageTokens, width});
                    const CudaTensor cache_device(dtype, {2, kPageTokens, width});
                    const CudaTensor out_device(DType::f32, {5, width});
                    cpu->fill_zero(cache);
                    cpu->rope(latent.view.reshape({rows, 1, width}), width - table.view.dim(1),
                              used, table.view, interleave);
                    cpu->write_cache(latent.view, to, cache);
                    cpu->read_cache(cache, page, 0, out.view);
                    cuda_kernels().fill_zero(cache_device);
                    cuda_kernels().rope_write_cache(latent_device, used, table_device, interleave,
                                                    to, cache_device);
                    cuda_kernels().read_cache(cache_device, page, 0, out_device);
                    expect_same_bits(out_device.values(), out.values);
                }
}

TEST(CudaLatentCache, RowsWithoutASlotAreNotWritten) {
    const std::vector<int64_t> slots{kNoSlot, 66, kNoSlot};
    const std::vector<int32_t> page{1}, positions{0, 3, 0};
    const Matrix latent(3, 24, 1), table(32, 8, 9);
    const CudaTensor latent_device(latent), table_device(table);
    for (const bool rotated : {false, true}) {
        const CudaTensor cache(DType::f32, {2, kPageTokens, 24});
        cuda_kernels().fill_zero(cache);
        if (rotated)
            cuda_kernels().rope_write_cache(latent_device, positions, table_device, false, slots,
                                            cache);
        else
            cuda_kernels().write_cache(latent_device, slots, cache);
        const std::vector<float> values = cache.values();
        for (size_t i = 0; i < values.size(); ++i)
            ASSERT_EQ(values[i] != 0, i / 24 == 66) << rotated << " " << i;
    }
}

}  // namespace
}  // namespace ferry
