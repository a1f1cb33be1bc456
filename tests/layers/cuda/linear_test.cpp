#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/few_rows.h"
#include "tests/support/cuda_matrix.h"
#include "tests/support/expect_error.h"
#include "tests/support/reference_linear.h"

namespace ferry {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::fp8_e4m3};

// bf16 inputs of the GPU: what the reference gets is rounded first, so that only sums differ.
void round_to_bf16(Matrix& x) {
    for (float& value : x.values) value = bf16_to_f32(f32_to_bf16(value));
}

// Of a sum of `in` products with values about 1 by random ones: f32 sums in another order; fp8
// weights times their scales are rounded to bf16, by up to 2^-9 of each.
float tolerance(const PlainWeight& w) {
    const float terms = std::sqrt(static_cast<float>(w.spec.in));
    if (w.spec.dtype != DType::fp8_e4m3) return 2e-5f * terms;
    float largest = 0;
    for (int64_t out = 0; out < w.spec.out; ++out)
        for (int64_t k = 0; k < w.spec.in; ++k)
            largest = std::max(largest,
                               std::abs(w.value(0, out, k) * w.scale_row(0, out)[k / kScaleBlock]));
    return 4 * 0x1p-9f * largest * terms;
}

struct Shape {
    int64_t rows, out, in;
};
constexpr Shape kShapes[] = {{0, 5, 7},     {1, 1, 1},      {3, 5, 7},    {2, 64, 48},
                             {5, 200, 130}, {17, 129, 257}, {4, 256, 512}};

TEST(CudaLinear, PackedValuesComeBack) {
    for (DType dtype : kTypes)
        for (const Shape& s : kShapes) {
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = 3, .out = s.out, .in = s.in}, 1);
            const Weight weight = plain.packed(cuda_kernels());
            Matrix values(s.out, s.in);
            cuda_kernels().unpack(weight, 2, values.view);
            for (int64_t i = 0; i < s.out; ++i)
                for (int64_t k = 0; k < s.in; ++k) {
                    const float scale =
                        dtype == DType::fp8_e4m3 ? plain.scale_row(2, i)[k / kScaleBlock] : 1;
                    ASSERT_EQ(values.view.row<float>(i)[k], plain.value(2, i, k) * scale);
                }
        }
}

TEST(CudaLinear, GemmAgreesWithTheReference) {
    for (DType dtype : kTypes)
        for (const Shape& s : kShapes) {
            SCOPED_TRACE(fmt::format("{}: {} x {} x {}", to_string(dtype), s.rows, s.out, s.in));
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = 1, .out = s.out, .in = s.in}, 1);
            const Matrix exact(s.rows, s.in, 2);
            Matrix x(s.rows, s.in, 2);
            if (dtype != DType::f32) round_to_bf16(x);
            Matrix expected(s.rows, s.out);
            const int64_t offsets[] = {0, s.rows};
            reference_grouped_gemm(x.view, offsets, plain, expected.view);
            const Weight weight = plain.packed(cuda_kernels());
            const CudaTensor x_device(exact), y(DType::f32, {s.rows, s.out});
            cuda_kernels().gemm(x_device, weight, y);
            expect_close(y.values(), expected.values, 1e-5f, tolerance(plain));
        }
}

TEST(CudaLinear, GemmOfARangeOfColumnsIntoOne) {
    for (DType dtype : kTypes)
        for (int64_t first : {16, 3}) {
            SCOPED_TRACE(fmt::format("{} from column {}", to_string(dtype), first));
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = 1, .out = 24, .in = 64}, 1);
            Matrix wide(5, 100, 2);
            round_to_bf16(wide);
            Matrix expected(5, 24);
            const int64_t offsets[] = {0, 5};
            reference_grouped_gemm(wide.view.slice_columns(first, 64), offsets, plain,
                                   expected.view);
            const Weight weight = plain.packed(cuda_kernels());
            const CudaTensor x(wide), y(DType::f32, {5, 60});
            cuda_kernels().gemm(x.view().slice_columns(first, 64), weight,
                                y.view().slice_columns(first, 24));
            const std::vector<float> all = y.values();
            for (int64_t row = 0; row < 5; ++row)
                for (int64_t i = 0; i < 60; ++i) {
                    const float got = all[static_cast<size_t>(row * 60 + i)];
                    if (i < first || i >= first + 24)
                        ASSERT_TRUE(std::isnan(got)) << "written outside its columns";
                    else
                        ASSERT_NEAR(got, expected.view.row<float>(row)[i - first],
                                    tolerance(plain));
                }
        }
}

// What products give as f32, rounded: another algorithm may sum in another order.
TEST(CudaLinear, GemmToBf16) {
    for (DType dtype : kTypes)
        for (const Shape& s : {Shape{3, 24, 64}, Shape{37, 136, 256}, Shape{64, 128, 512}})
            for (bool fp8_activations : {false, true}) {
                if (fp8_activations && dtype != DType::fp8_e4m3) continue;
                SCOPED_TRACE(fmt::format("{}: {} x {}", to_string(dtype), s.rows, s.out));
                const PlainWeight plain =
                    PlainWeight::random({.dtype = dtype, .groups = 1, .out = s.out, .in = s.in}, 1);
                const Weight weight = plain.packed(cuda_kernels());
                const CudaTensor x(Matrix(s.rows, s.in, 2)), y(DType::f32, {s.rows, s.out});
                const CudaTensor y_bf16(DType::bf16, {s.rows, s.out});
                const CudaTensor q(DType::fp8_e4m3, {s.rows, s.in});
                const CudaTensor scales(DType::f32, {s.rows, ceil_div(s.in, kScaleBlock)});
                cuda_kernels().quantise_fp8(x, false, q, scales, nullptr);
                for (const CudaTensor* to : {&y, &y_bf16})
                    cuda_kernels().gemm(fp8_activations ? q : x, weight, *to,
                                        fp8_activations ? &scales.view() : nullptr);
                const std::vector<float> expected = y.values();
                const std::vector<uint16_t> got = y_bf16.values<uint16_t>();
                for (size_t i = 0; i < got.size(); ++i)
                    ASSERT_NEAR(bf16_to_f32(got[i]), expected[i],
                                std::abs(expected[i]) / 256 + tolerance(plain))
                        << i;
            }
}

// Numbers of rows around multiples of four, which is what cuBLASLt takes.
constexpr Shape kFp8Shapes[] = {{33, 64, 512},  {34, 132, 256},  {39, 200, 128},
                                {40, 200, 384}, {129, 132, 256}, {134, 5, 256}};

TEST(CudaLinear, Fp8ActivationsOnEveryGpu) {
    std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
    shapes.insert(shapes.end(), std::begin(kFp8Shapes), std::end(kFp8Shapes));
    for (const Shape& s : shapes) {
        SCOPED_TRACE(fmt::format("{} x {} x {}", s.rows, s.out, s.in));
        const PlainWeight plain = PlainWeight::random(
            {.dtype = DType::fp8_e4m3, .groups = 1, .out = s.out, .in = s.in}, 1);
        const int64_t blocks = ceil_div(s.in, kScaleBlock);
        const Matrix x(s.rows, s.in, 2);
        Matrix q(s.rows, s.in), scales(s.rows, blocks), expected(s.rows, s.out);
        reference_quantise_fp8(x.view, false, q.view, scales.view);
        const int64_t offsets[] = {0, s.rows};
        reference_grouped_gemm(q.view, offsets, plain, expected.view, &scales.view);

        const Weight weight = plain.packed(cuda_kernels());
        const CudaTensor x_device(x), q_device(DType::fp8_e4m3, {s.rows, s.in});
        const CudaTensor scales_device(DType::f32, {s.rows, blocks});
        const CudaTensor y(DType::f32, {s.rows, s.out});
        cuda_kernels().quantise_fp8(x_device, false, q_device, scales_device);
        cuda_kernels().gemm(q_device, weight, y, &scales_device.view());
        // Widened activations are rounded to bf16 as well.
        expect_close(y.values(), expected.values, 1e-5f, 2 * tolerance(plain));
    }
}

// Tiles that are not full, blocks of scales that are not, more warps than blocks of `in`.
constexpr Shape kFewRowsShapes[] = {{1, 64, 512},   {2, 5, 16},     {7, 200, 144},
                                    {8, 130, 1040}, {9, 48, 1296},  {16, 16, 2048},
                                    {17, 257, 272}, {31, 144, 640}, {32, 4240, 128}};

// y of rows [0, rows) of x, whose rows are `gap` values further apart than they need be.
std::vector<float> few_rows(Kernels& kernels, const Matrix& x, int64_t rows, bool fp8,
                            const Weight& weight, int64_t gap) {
    const int64_t in = weight.spec.in, out = weight.spec.out;
    const int64_t most = x.view.rows();
    Matrix wide(most, in + gap, 5);
    for (int64_t row = 0; row < most; ++row)
        std::copy_n(x.view.row<float>(row), in, wide.view.row<float>(row));
    const CudaTensor x_device(wide), q(DType::fp8_e4m3, {most, in + gap});
    const CudaTensor scales(DType::f32, {most, ceil_div(in, kScaleBlock) + 1});
    const CudaTensor y(DType::f32, {rows, out + gap});
    const Tensor of_y = y.view().slice_columns(0, out);
    const Tensor of_x = x_device.view().slice_columns(0, in).slice_rows(0, rows);
    if (fp8) {
        const Tensor to = q.view().slice_columns(0, in).slice_rows(0, rows);
        const Tensor to_scales =
            scales.view().slice_columns(0, ceil_div(in, kScaleBlock)).slice_rows(0, rows);
        kernels.quantise_fp8(of_x, false, to, to_scales, nullptr);
        kernels.gemm(to, weight, of_y, &to_scales);
    } else {
        kernels.gemm(of_x, weight, of_y, nullptr);
    }
    const std::vector<float> all = y.values();
    std::vector<float> own;
    for (int64_t i = 0; i < rows * (out + gap); ++i)
        if (i % (out + gap) < out)
            own.push_back(all[static_cast<size_t>(i)]);
        else
            EXPECT_TRUE(std::isnan(all[static_cast<size_t>(i)])) << "written outside its columns";
    return own;
}

TEST(CudaLinear, FewRowsAgreeWithTheReference) {
    for (bool fp8 : {true, false})
        for (const Shape& s : kFewRowsShapes) {
            SCOPED_TRACE(fmt::format("{} x {} x {}, {}", s.rows, s.out, s.in, fp8));
            CudaKernels kernels(cuda_device(0), 1);
            const PlainWeight plain = PlainWeight::random(
                {.dtype = DType::fp8_e4m3, .groups = 1, .out = s.out, .in = s.in}, 1);
            Matrix x(s.rows, s.in, 2);
            Matrix q(s.rows, s.in), scales(s.rows, ceil_div(s.in, kScaleBlock));
            if (fp8)
                reference_quantise_fp8(x.view, false, q.view, scales.view);
            else
                round_to_bf16(x);
            Matrix expected(s.rows, s.out);
            const int64_t offsets[] = {0, s.rows};
            reference_grouped_gemm(fp8 ? q.view : x.view, offsets, plain, expected.view,
                                   fp8 ? &scales.view : nullptr);
            const Weight weight = plain.packed(kernels);
            // Nothing is rounded but the f32 sums.
            expect_close(few_rows(kernels, x, s.rows, fp8, weight, 16), expected.values, 1e-5f,
                         2e-5f * std::sqrt(static_cast<float>(s.in)));
            EXPECT_THAT(kernels.describe_plans(),
                        ::testing::ElementsAre(::testing::HasSubstr("own kernel")));
        }
}

TEST(CudaLinear, ARowOfFewHasTheSameBitsInAnyNumberOfThem) {
    for (bool fp8 : {true, false}) {
        const int64_t out = 80, in = 2960;
        const Weight weight =
            PlainWeight::random({.dtype = DType::fp8_e4m3, .groups = 1, .out = out, .in = in}, 1)
                .packed(cuda_kernels());
        const Matrix x(kFewRowsMost, in, 2);
        const std::vector<float> all = few_rows(cuda_kernels(), x, kFewRowsMost, fp8, weight, 0);
        for (int64_t rows : {1, 8, 16, 31}) {
            const auto some = few_rows(cuda_kernels(), x, rows, fp8, weight, 0);
            expect_same_bits(some, std::vector<float>(all.begin(), all.begin() + rows * out));
        }
    }
}

// One kernel with much shared memory and then with little, as the layers of a step have it.
TEST(CudaLinear, FewRowsOfSeveralSizesInOneGraph) {
    const auto weight_of = [](int64_t out, int64_t in) {
        return PlainWeight::random({.dtype = DType::fp8_e4m3, .groups = 1, .out = out, .in = in}, 1)
            .packed(cuda_kernels());
    };
    ASSERT_GT(few_rows_plan(3, 32, 2048, 163 << 10).shared_bytes(2048),
              few_rows_plan(3, 48, 512, 163 << 10).shared_bytes(512) + (32 << 10));
    const Weight large = weight_of(32, 2048), small = weight_of(48, 512);
    const CudaTensor x(Matrix(3, 2048, 2));
    const CudaTensor y_large(DType::f32, {3, 32}), y_small(DType::f32, {3, 48});
    const auto multiply = [&] {
        cuda_kernels().gemm(x, large, y_large);
        cuda_kernels().gemm(x.view().slice_columns(0, 512), small, y_small);
    };
    multiply();
    const std::vector<float> of_large = y_large.values(), of_small = y_small.values();
    const CudaGraph graph = CudaGraph::record(cuda_device(0), multiply);
    for (const CudaTensor* y : {&y_large, &y_small}) cuda_kernels().fill_zero(*y);
    graph.launch(cuda_device(0));
    expect_same_bits(y_large.values(), of_large);
    expect_same_bits(y_small.values(), of_small);
}

TEST(CudaLinear, PlansOfFewRows) {
    constexpr int64_t kHopper = 227 << 10, kAmpere = 163 << 10;
    EXPECT_EQ(few_rows_plan(1, 7168, 18432, kHopper).describe(),
              "own kernel, tiles of 8 x 16, 1 to a block, 4 warps along in");
    EXPECT_EQ(few_rows_plan(16, 7168, 18432, kHopper).describe(),
              "own kernel, tiles of 16 x 16, 2 to a block, 4 warps along in");
    EXPECT_EQ(few_rows_plan(1, 2048, 7168, kHopper).in_warps, 16);
    EXPECT_EQ(few_rows_plan(1, 2048, 7168, kAmpere).in_warps, 8);
    for (int64_t out : {1, 576, 2048, 18432, 100000})
        for (int64_t in : {16, 128, 1536, 7168, 18432})
            for (int64_t rows = 1; rows <= kFewRowsMost; ++rows) {
                const FewRowsPlan plan = few_rows_plan(rows, out, in, kHopper);
                EXPECT_GE(8 * plan.row_tiles, rows);
                EXPECT_LE(plan.num_warps(), kFewRowsMostWarps);
                EXPECT_LE(plan.shared_bytes(in), kHopper);
                // The order of sums.
                EXPECT_EQ(plan.in_warps, few_rows_plan(1, out, in, kHopper).in_warps);
                // One scale of the weights to a block.
                EXPECT_EQ(kScaleBlock % (plan.out_tiles * kFewRowsOut), 0);
            }
    EXPECT_GT(few_rows_plan(32, 16, 1 << 20, kHopper).shared_bytes(1 << 20), kHopper);
}

TEST(CudaLinear, WhatDoesNotBeginOn16BytesIsNotTakenAsItIs) {
    CudaKernels kernels(cuda_device(0), 1);
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::fp8_e4m3, .groups = 1, .out = 24, .in = 120}, 1);
    const Weight weight = plain.packed(kernels);
    Matrix x(3, 120, 2), q(3, 120), scales(3, 1), expected(3, 24);
    reference_quantise_fp8(x.view, false, q.view, scales.view);
    const int64_t offsets[] = {0, 3};
    reference_grouped_gemm(q.view, offsets, plain, expected.view, &scales.view);
    expect_close(few_rows(kernels, x, 3, true, weight, 0), expected.values, 1e-5f,
                 2 * tolerance(plain));
    EXPECT_THAT(kernels.describe_plans(),
                ::testing::Not(::testing::Contains(::testing::HasSubstr("own kernel"))));
}

TEST(CudaLinear, Fp8IsTheLibrarysOwnOnHopper) {
    if (cuda_device(0).info().capability != 90) GTEST_SKIP() << "widened to bf16 here";
    CudaKernels kernels(cuda_device(0), 1);
    const int64_t out = 132, in = 256;
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::fp8_e4m3, .groups = 1, .out = out, .in = in}, 1);
    const Weight weight = plain.packed(kernels);
    for (int64_t rows : {33, 40, 130}) {
        const CudaTensor x(Matrix(rows, in, 2)), q(DType::fp8_e4m3, {rows, in});
        const CudaTensor scales(DType::f32, {rows, in / kScaleBlock}), y(DType::f32, {rows, out});
        kernels.quantise_fp8(x, false, q, scales, nullptr);
        kernels.gemm(q, weight, y, &scales.view());
    }
    const auto planned = [](const char* rows) {
        return ::testing::AllOf(::testing::StartsWith(fmt::format("fp8 [{} x 256] x ", rows)),
                                ::testing::Not(::testing::HasSubstr("not offered")));
    };
    EXPECT_THAT(kernels.describe_plans(),
                ::testing::ElementsAre(planned("4"), planned("36"), planned("40"), planned("128")));
}

TEST(CudaLinear, RulesOfFp8) {
    const GemmShape allowed{.inputs = GemmShape::Inputs::fp8,
                            .rows = 4,
                            .out = 132,
                            .in = 256,
                            .x_stride = 256,
                            .w_stride = 256,
                            .y_stride = 132};
    EXPECT_TRUE(fp8_rules_allow(allowed));
    const auto refused = [&](int64_t GemmShape::*field, int64_t value) {
        GemmShape shape = allowed;
        shape.*field = value;
        EXPECT_FALSE(fp8_rules_allow(shape)) << value;
    };
    refused(&GemmShape::rows, 6);
    refused(&GemmShape::out, 130);
    refused(&GemmShape::in, 248);
    refused(&GemmShape::x_stride, 264);
    refused(&GemmShape::w_stride, 264);
    refused(&GemmShape::y_stride, 133);
    refused(&GemmShape::alignment, 4);
}

TEST(CudaLinear, HeadGemm) {
    for (DType dtype : kTypes)
        for (int64_t rows : {0, 1, 6})
            for (int64_t head_stride : {40, 47}) {
                SCOPED_TRACE(fmt::format("{}, {} rows, heads {} apart", to_string(dtype), rows,
                                         head_stride));
                const PlainWeight plain =
                    PlainWeight::random({.dtype = dtype, .groups = 3, .out = 21, .in = 40}, 1);
                Matrix x(rows, 3 * head_stride, 2);
                round_to_bf16(x);
                Matrix expected(rows, 3 * 21);
                reference_head_gemm(x.view, head_stride, plain,
                                    expected.view.reshape({rows, 3, 21}));
                const Weight weight = plain.packed(cuda_kernels());
                const CudaTensor x_device(x), y(DType::f32, {rows, 3, 21});
                cuda_kernels().head_gemm(x_device, head_stride, weight, y);
                expect_close(y.values(), expected.values, 1e-5f, tolerance(plain));
            }
}

TEST(CudaLinear, RunsGiveTheSameBits) {
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = 1, .out = 512, .in = 2048}, 1);
    const Weight weight = plain.packed(cuda_kernels());
    const CudaTensor x(Matrix(9, 2048, 2)), first(DType::f32, {9, 512}),
        again(DType::f32, {9, 512});
    cuda_kernels().gemm(x, weight, first);
    cuda_kernels().gemm(x, weight, again);
    expect_same_bits(again.values(), first.values());
}

TEST(CudaLinear, TellsHowProductsAreComputedAndWhatWasUploaded) {
    CudaKernels kernels(cuda_device(0), 1);
    EXPECT_TRUE(kernels.describe_plans().empty());
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = 1, .out = 32, .in = 64}, 1);
    const Weight weight = plain.packed(kernels);
    EXPECT_EQ(kernels.upload_totals().bytes, 32 * 64 * 2);
    EXPECT_GT(kernels.upload_totals().seconds, 0);
    const CudaTensor x(Matrix(9, 64, 2)), y(DType::f32, {9, 32});
    for (int round = 0; round < 2; ++round) kernels.gemm(x, weight, y, nullptr);
    kernels.gemm(x.view().slice_rows(0, 1), weight, y.view().slice_rows(0, 1), nullptr);
    EXPECT_THAT(kernels.describe_plans(),
                ::testing::ElementsAre(::testing::StartsWith("bf16 [1 x 64] x [32 x 64]: "),
                                       ::testing::StartsWith("bf16 [9 x 64] x [32 x 64]: ")));
}

TEST(CudaLinear, RefusesFp8NaN) {
    std::vector<uint8_t> codes(20 * 200, 0x30);
    codes[19 * 200 + 7] = 0xff;
    const std::vector<float> scale(2, 1.0f);
    const Tensor scales(scale.data(), DType::f32, {1, 2});
    Weight weight =
        cuda_kernels().make_weight({.dtype = DType::fp8_e4m3, .groups = 1, .out = 20, .in = 200});
    EXPECT_ERROR(cuda_kernels().pack(weight, 0, 0, Tensor(codes.data(), DType::fp8_e4m3, {20, 200}),
                                     &scales),
                 ErrorKind::checkpoint, "NaN");
}

}  // namespace
}  // namespace ferry
