#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

TEST(CudaRmsNorm, AgreesWithTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t rows : {0, 1, 5})
        // 12288 values are 48 KiB, what a kernel has unasked for.
        for (int64_t dim : {1, 15, 64, 100, 2048, 7168, 12288, 20000}) {
            SCOPED_TRACE(fmt::format("{} x {}", rows, dim));
            const Matrix x(rows, dim, 1), weight(1, dim, 2);
            Matrix expected(rows, dim);
            cpu->rms_norm(x.view, weight.view.reshape({dim}), 1e-6f, expected.view);
            const CudaTensor on_device(x), factors(weight.view.reshape({dim}));
            const CudaTensor y(DType::f32, {rows, dim});
            cuda_kernels().rms_norm(on_device, factors, 1e-6f, y);
            expect_close(y.values(), expected.values, 2e-6f);
        }
}

TEST(CudaLayerNorm, AgreesWithTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t rows : {0, 1, 5})
        for (int64_t dim : {1, 24, 100, 128, 2048}) {
            Matrix x(rows, dim, 1);
            const Matrix weight(1, dim, 2), bias(1, dim, 3);
            const CudaTensor on_device(x), factors(weight.view.reshape({dim})),
                added(bias.view.reshape({dim}));
            cuda_kernels().layer_norm(on_device, factors, added, 1e-6f, on_device);
            cpu->layer_norm(x.view, weight.view.reshape({dim}), bias.view.reshape({dim}), 1e-6f,
                            x.view);
            expect_close(on_device.values(), x.values, 2e-6f, 2e-6f);
        }
}

TEST(CudaRmsNorm, InPlaceOnARangeOfColumns) {
    const auto cpu = make_cpu_kernels(1);
    for (int64_t first : {8, 10}) {
        Matrix x(3, 80, 1);
        const Matrix weight(1, 48, 2);
        const CudaTensor on_device(x), factors(weight.view.reshape({48}));
        const auto norm = [&](Kernels& kernels, const Tensor& rows, const Tensor& by) {
            const Tensor part = rows.slice_columns(first, 48);
            kernels.rms_norm(part, by, 1e-6f, part);
        };
        norm(*cpu, x.view, weight.view.reshape({48}));
        norm(cuda_kernels(), on_device, factors);
        expect_close(on_device.values(), x.values, 2e-6f);
    }
}

TEST(CudaRmsNorm, ARowDoesNotDependOnTheOthers) {
    const Matrix x(7, 300, 1), weight(1, 300, 2);
    const CudaTensor on_device(x), factors(weight.view.reshape({300}));
    const CudaTensor all(DType::f32, {7, 300}), one(DType::f32, {1, 300});
    cuda_kernels().rms_norm(on_device, factors, 1e-6f, all);
    cuda_kernels().rms_norm(on_device.view().slice_rows(4, 1), factors, 1e-6f, one);
    const std::vector<float> rows = all.values();
    expect_same_bits(one.values(), {rows.begin() + 4 * 300, rows.begin() + 5 * 300});
}

TEST(CudaRmsNorm, AfterAddingHasTheBitsOfBoth) {
    for (int64_t rows : {0, 1, 5})
        for (int64_t dim : {7, 512}) {
            const CudaTensor x(Matrix(rows, dim, 1)), h(Matrix(rows, dim, 2));
            const CudaTensor fused_h(Matrix(rows, dim, 2));
            const CudaTensor weight(Matrix(1, dim, 3).view.reshape({dim}));
            const CudaTensor y(DType::f32, {rows, dim}), fused_y(DType::f32, {rows, dim});
            cuda_kernels().add(x, h);
            cuda_kernels().rms_norm(h, weight, 1e-6f, y);
            cuda_kernels().add_rms_norm(x, fused_h, weight, 1e-6f, fused_y);
            expect_same_bits(fused_h.values(), h.values());
            expect_same_bits(fused_y.values(), y.values());
        }
}

}  // namespace
}  // namespace ferry
