#include "tests/support/cuda_matrix.h"
#include "tests/support/reference_linear.h"

namespace ferry {
namespace {

TEST(CudaQuantise, HasTheBitsOfTheReference) {
    for (bool power_of_two : {false, true})
        for (int64_t rows : {0, 1, 9})
            for (int64_t columns : {1, 4, 127, 128, 300, 512}) {
                SCOPED_TRACE(fmt::format("{} x {}", rows, columns));
                Matrix x(rows, columns, 1);
                if (rows > 1) {  // blocks of zeros, of tiny and of huge values, and halfway codes
                    std::fill_n(x.view.row<float>(0), columns, 0.0f);
                    for (int64_t i = 0; i < columns; ++i) {
                        x.view.row<float>(2)[i] *= 1e-7f;
                        x.view.row<float>(3)[i] *= 1e30f;
                        x.view.row<float>(4)[i] = static_cast<float>(i % 100) * 0.0625f;
                    }
                    x.view.row<float>(4)[0] = 448;
                }
                const int64_t blocks = ceil_div(columns, kScaleBlock);
                Matrix q(rows, columns), scales(rows, blocks);
                reference_quantise_fp8(x.view, power_of_two, q.view, scales.view);
                const CudaTensor x_device(x), q_device(DType::fp8_e4m3, {rows, columns});
                const CudaTensor scales_device(DType::f32, {rows, blocks});
                cuda_kernels().quantise_fp8(x_device, power_of_two, q_device, scales_device);
                expect_same_bits(scales_device.values(), scales.values);
                const std::vector<uint8_t> codes = q_device.values<uint8_t>();
                std::vector<float> widened;
                for (uint8_t code : codes) widened.push_back(fp8_e4m3_to_f32(code));
                expect_same_bits(widened, q.values);
            }
}

TEST(CudaQuantise, OfARangeOfColumns) {
    const Matrix x(4, 300, 1);
    for (int64_t first : {4, 5}) {
        Matrix q(4, 256), scales(4, 2);
        reference_quantise_fp8(x.view.slice_columns(first, 256), false, q.view, scales.view);
        const CudaTensor x_device(x), q_device(DType::fp8_e4m3, {4, 256});
        const CudaTensor scales_device(DType::f32, {4, 2});
        cuda_kernels().quantise_fp8(x_device.view().slice_columns(first, 256), false, q_device,
                                    scales_device);
        const std::vector<uint8_t> codes = q_device.values<uint8_t>();
        for (size_t i = 0; i < codes.size(); ++i)
            ASSERT_EQ(fp8_e4m3_to_f32(codes[i]), q.values[i]) << i;
    }
}

// What is fused has the bits of its parts.
TEST(CudaQuantise, NormedAndActivatedRows) {
    for (bool power_of_two : {false, true})
        for (int64_t rows : {0, 1, 5})
            for (int64_t columns : {4, 130, 512, 1536}) {
                SCOPED_TRACE(fmt::format("{} x {}", rows, columns));
                const int64_t blocks = ceil_div(columns, kScaleBlock);
                const CudaTensor x(Matrix(rows, columns, 1)), gate_up(Matrix(rows, 2 * columns, 2));
                const CudaTensor weight(Matrix(1, columns, 3).view.reshape({columns}));
                const CudaTensor y(DType::f32, {rows, columns});
                const CudaTensor q(DType::fp8_e4m3, {rows, columns});
                const CudaTensor scales(DType::f32, {rows, blocks});
                const CudaTensor fused_q(DType::fp8_e4m3, {rows, columns});
                const CudaTensor fused_scales(DType::f32, {rows, blocks});
                Kernels& kernels = cuda_kernels();
                const auto expect_same = [&] {
                    kernels.quantise_fp8(y, power_of_two, q, scales);
                    EXPECT_EQ(fused_q.values<uint8_t>(), q.values<uint8_t>());
                    expect_same_bits(fused_scales.values(), scales.values());
                };
                kernels.rms_norm(x, weight, 1e-6f, y);
                kernels.rms_norm_quantise(x, weight, 1e-6f, power_of_two, fused_q, fused_scales);
                expect_same();
                kernels.silu_mul(gate_up, y);
                kernels.silu_mul_quantise(gate_up, power_of_two, fused_q, fused_scales);
                expect_same();
            }
}

// Buffers are for the worst case; only the device knows how many rows there are.
TEST(CudaQuantise, LeadingRowsOnly) {
    constexpr int64_t kRows = 5, kUsed = 3, kColumns = 130;
    Kernels& kernels = cuda_kernels();
    const Buffer num_rows(cuda_device(0), sizeof(int64_t));
    cuda_device(0).copy_from_host(num_rows.data(), &kUsed, sizeof(kUsed));
    const CudaTensor x(Matrix(kRows, kColumns, 1)), gate_up(Matrix(kRows, 2 * kColumns, 2));
    for (const bool activated : {false, true}) {
        const CudaTensor all_q(DType::fp8_e4m3, {kRows, kColumns}), all(DType::f32, {kRows, 2});
        const CudaTensor q(DType::fp8_e4m3, {kRows, kColumns}), scales(DType::f32, {kRows, 2});
        if (activated) {
            kernels.silu_mul_quantise(gate_up, false, all_q, all);
            kernels.silu_mul_quantise(gate_up, false, q, scales, num_rows.as<int64_t>());
        } else {
            kernels.quantise_fp8(x, false, all_q, all);
            kernels.quantise_fp8(x, false, q, scales, num_rows.as<int64_t>());
        }
        std::vector<uint8_t> codes = all_q.values<uint8_t>();
        std::fill(codes.begin() + kUsed * kColumns, codes.end(), uint8_t{0xff});
        EXPECT_EQ(q.values<uint8_t>(), codes);
        for (int64_t i = 0; i < kRows * 2; ++i) {
            const auto at = static_cast<size_t>(i);
            if (i < kUsed * 2)
                EXPECT_EQ(scales.values()[at], all.values()[at]);
            else
                EXPECT_TRUE(std::isnan(scales.values()[at]));
        }
    }
}

}  // namespace
}  // namespace ferry
