#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "layers/cpu/cpu_kernels.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_linear.h"
#include "tests/support/vector_targets.h"
#include "tests/support/wire_matrix.h"

namespace ferry {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::fp8_e4m3};

TEST(CpuKernels, OldCpusAreRefused) {
    check_vector_instructions(hwy::SupportedTargets());
    try {
        check_vector_instructions(HWY_SCALAR | HWY_SSE4 | HWY_SSSE3);
        FAIL() << "a CPU without AVX2 was accepted";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::usage);
    }
}

TEST(Linear, TwoRowsByHand) {
    const float w[] = {1, 2, 3, -1, 0.5f, 0};  // [2, 3]
    const float x[] = {1, 1, 1, 2, 0, -4};     // [2, 3]
    const auto kernels = make_cpu_kernels(1);
    Weight weight = kernels->make_weight({.dtype = DType::f32, .groups = 1, .out = 2, .in = 3});
    kernels->pack(weight, 0, 0, Tensor(w, DType::f32, {2, 3}), nullptr);
    Matrix y(2, 2);
    kernels->gemm(Tensor(x, DType::f32, {2, 3}), weight, y.view);
    EXPECT_EQ(y.values, (std::vector<float>{6, -0.5f, -10, -2}));
}

TEST(Linear, EveryFp8CodeIsWidenedExactly) {
    const auto kernels = make_cpu_kernels(1);
    std::vector<uint8_t> codes;
    for (int code = 0; code < 256; ++code)
        if ((code & 0x7f) != 0x7f) codes.push_back(static_cast<uint8_t>(code));
    const int64_t out = static_cast<int64_t>(codes.size());  // y_o = 1 * w_o
    const float scale[] = {1, 1}, one[] = {1};
    const Tensor scales(scale, DType::f32, {2, 1});
    Weight weight =
        kernels->make_weight({.dtype = DType::fp8_e4m3, .groups = 1, .out = out, .in = 1});
    kernels->pack(weight, 0, 0, Tensor(codes.data(), DType::fp8_e4m3, {out, 1}), &scales);
    for_each_vector_target([&] {
        Matrix y(1, out);
        kernels->gemm(Tensor(one, DType::f32, {1, 1}), weight, y.view);
        for (size_t i = 0; i < codes.size(); ++i)
            EXPECT_EQ(y.values[i], fp8_e4m3_to_f32(codes[i])) << int{codes[i]};
    });
}

TEST(Linear, Fp8NaNIsRefused) {
    const auto kernels = make_cpu_kernels(1);
    std::vector<uint8_t> codes(20 * 200, 0x30);
    const std::vector<float> scale(2, 1.0f);
    const Tensor scales(scale.data(), DType::f32, {1, 2});
    const Tensor w(codes.data(), DType::fp8_e4m3, {20, 200});
    Weight weight =
        kernels->make_weight({.dtype = DType::fp8_e4m3, .groups = 1, .out = 20, .in = 200});
    kernels->pack(weight, 0, 0, w, &scales);
    codes[17 * 200 + 199] = 0xff;
    try {
        kernels->pack(weight, 0, 0, w, &scales);
        FAIL() << "a NaN was packed";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::checkpoint);
        EXPECT_NE(std::string(error.what()).find("[17, 199]"), std::string::npos) << error.what();
    }
}

TEST(Linear, UnpackGivesBackWhatWasPacked) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(1);
        for (DType dtype : kTypes)
            for (int64_t out : {1, 16, 130, 300})
                for (int64_t in : {1, 31, 64, 129, 160}) {
                    const PlainWeight plain =
                        PlainWeight::random({.dtype = dtype, .groups = 2, .out = out, .in = in}, 7);
                    for (int64_t rows_at_once : {128, 256}) {
                        const Weight weight = plain.packed(*kernels, rows_at_once);
                        Matrix w(out, in), expected(out, in);
                        kernels->unpack(weight, 1, w.view);
                        for (int64_t o = 0; o < out; ++o)
                            for (int64_t k = 0; k < in; ++k) {
                                float& value = expected.view.row<float>(o)[k];
                                value = plain.value(1, o, k);
                                if (dtype == DType::fp8_e4m3)
                                    value *= plain.scale_row(1, o)[k / kScaleBlock];
                            }
                        EXPECT_EQ(num_different(w, expected), 0)
                            << to_string(dtype) << " " << out << " x " << in;
                    }
                }
    });
}

// They share memory, which stays until the last of them is gone.
TEST(Linear, SmallWeightsDoNotDisturbEachOther) {
    const auto kernels = make_cpu_kernels(1);
    std::vector<PlainWeight> plain;
    std::vector<Weight> packed;
    for (int64_t i = 0; i < 40; ++i)  // 20 MB: more than one block
        for (DType dtype : kTypes) {
            plain.push_back(PlainWeight::random(
                {.dtype = dtype, .groups = 1, .out = 130 + i, .in = 500 + i}, 7 + i));
            packed.push_back(plain.back().packed(*kernels));
        }
    for (size_t i = 0; i < packed.size(); ++i) {
        if (i % 4 == 0) {
            packed[i] = {};
            continue;
        }
        const WeightSpec& spec = packed[i].spec;
        Matrix w(spec.out, spec.in), expected(spec.out, spec.in);
        kernels->unpack(packed[i], 0, w.view);
        kernels->unpack(plain[i].packed(*kernels), 0, expected.view);
        EXPECT_EQ(num_different(w, expected), 0) << i;
    }
}

struct Shape {
    int64_t rows, out, in;
};

// Row counts of every kind of tile, tails of panels, scale blocks and k-blocks.
constexpr Shape kShapes[] = {{0, 40, 30},    {1, 1, 1},      {1, 130, 300},  {2, 100, 129},
                             {3, 72, 257},   {4, 48, 64},    {5, 33, 128},   {6, 200, 255},
                             {7, 65, 384},   {12, 90, 290},  {13, 144, 530}, {20, 16, 100},
                             {129, 50, 200}, {193, 24, 260}, {1, 300, 0}};

TEST(Linear, GemmHasTheBitsOfTheReference) {
    for (const Shape& shape : kShapes)
        for (DType dtype : kTypes) {
            const PlainWeight plain = PlainWeight::random(
                {.dtype = dtype, .groups = 1, .out = shape.out, .in = shape.in}, 11);
            const Matrix x(shape.rows, shape.in, 12);
            const Matrix x_scales(shape.rows, ceil_div(shape.in, kScaleBlock), 13);
            const int64_t offsets[] = {0, shape.rows};
            Matrix expected(shape.rows, shape.out), expected_scaled(shape.rows, shape.out);
            reference_grouped_gemm(x.view, offsets, plain, expected.view);
            if (dtype == DType::fp8_e4m3)
                reference_grouped_gemm(x.view, offsets, plain, expected_scaled.view,
                                       &x_scales.view);
            for_each_vector_target([&] {
                SCOPED_TRACE(fmt::format("{} [{}, {}] x {} rows", to_string(dtype), shape.out,
                                         shape.in, shape.rows));
                const auto kernels = make_cpu_kernels(1);
                const Weight weight = plain.packed(*kernels);
                Matrix y(shape.rows, shape.out);
                kernels->gemm(x.view, weight, y.view);
                EXPECT_EQ(num_different(y, expected), 0);
                if (dtype != DType::fp8_e4m3) return;
                Matrix y_scaled(shape.rows, shape.out);
                kernels->gemm(x.view, weight, y_scaled.view, &x_scales.view);
                EXPECT_EQ(num_different(y_scaled, expected_scaled), 0) << "scaled activations";
            });
        }
}

// Enough work to be split among threads.
TEST(Linear, ThreadsDoNotChangeBits) {
    for (DType dtype : kTypes)
        for (int64_t rows : {1, 3, 40}) {
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = 1, .out = 1000, .in = 600}, 21);
            const Matrix x(rows, 600, 22);
            const int64_t offsets[] = {0, rows};
            Matrix expected(rows, 1000);
            reference_grouped_gemm(x.view, offsets, plain, expected.view);
            for (int num_threads : {1, 2, 3, 8}) {
                const auto kernels = make_cpu_kernels(num_threads);
                Matrix y(rows, 1000);
                kernels->gemm(x.view, plain.packed(*kernels), y.view);
                EXPECT_EQ(num_different(y, expected), 0)
                    << to_string(dtype) << " " << rows << " rows, " << num_threads << " threads";
            }
        }
}

TEST(Linear, GroupsOfManySizes) {
    const int64_t offsets[] = {0, 0, 1, 4, 4, 11, 211, 213, 213};
    const int64_t groups = 8, rows = 213;
    for (DType dtype : kTypes) {
        const PlainWeight plain =
            PlainWeight::random({.dtype = dtype, .groups = groups, .out = 136, .in = 272}, 31);
        const Matrix x(rows, 272, 32);
        Matrix expected(rows, 136);
        reference_grouped_gemm(x.view, offsets, plain, expected.view);
        for (int num_threads : {1, 2, 3}) {
            const auto kernels = make_cpu_kernels(num_threads);
            Matrix y(rows, 136);
            kernels->grouped_gemm(x.view, offsets, plain.packed(*kernels), y.view);
            EXPECT_EQ(num_different(y, expected), 0) << to_string(dtype);
        }
    }
}

// Rows that lie apart, as they travelled, have the bits of the same rows as f32. `in` is more than
// scratch holds of few rows.
TEST(Linear, WireRowsHaveTheBitsOfDecodedRows) {
    const int64_t offsets[] = {0, 1, 1, 13, 48, 100};
    const int64_t groups = 5, rows = 100, in = 5300, out = 40;
    const Matrix x(rows, in, 61);
    for (DType wire : kTypes) {
        const WireMatrix sent(wire, x);
        for (DType dtype : kTypes) {
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = groups, .out = out, .in = in}, 62);
            Matrix expected(rows, out);
            reference_grouped_gemm(sent.decoded.view, offsets, plain, expected.view);
            for (int num_threads : {1, 2}) {
                const auto kernels = make_cpu_kernels(num_threads);
                Matrix y(rows, out);
                kernels->grouped_gemm_wire(sent.rows, offsets, plain.packed(*kernels), y.view);
                EXPECT_EQ(num_different(y, expected), 0)
                    << to_string(wire) << " rows, " << to_string(dtype) << " weights";
            }
        }
    }
}

TEST(Linear, ColumnRangesOfWiderMatrices) {
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = 1, .out = 72, .in = 100}, 41);
    for (int64_t rows : {1, 5, 30}) {
        const Matrix x(rows, 250, 42);
        Matrix y(rows, 200), expected(rows, 200);
        const Tensor part = x.view.slice_columns(130, 100);
        const int64_t offsets[] = {0, rows};
        reference_grouped_gemm(part, offsets, plain, expected.view.slice_columns(100, 72));
        const auto kernels = make_cpu_kernels(2);
        kernels->gemm(part, plain.packed(*kernels), y.view.slice_columns(100, 72));
        EXPECT_EQ(num_different(y, expected), 0);  // columns beside the range stay NaN in both
    }
}

TEST(Linear, HeadGemm) {
    const int64_t heads = 5, in = 48, out = 40, head_dim = 64;
    for (DType dtype : {DType::f32, DType::bf16}) {
        const PlainWeight plain =
            PlainWeight::random({.dtype = dtype, .groups = heads, .out = out, .in = in}, 51);
        for (int64_t rows : {0, 1, 4, 31}) {
            const Matrix x(rows, heads * head_dim + 3, 52);
            const Tensor all_heads = x.view.slice_columns(3, heads * head_dim);
            Matrix y(rows, heads * out), expected(rows, heads * out);
            reference_head_gemm(all_heads, head_dim, plain, expected.view);
            const auto kernels = make_cpu_kernels(2);
            kernels->head_gemm(all_heads, head_dim, plain.packed(*kernels),
                               y.view.reshape({rows, heads, out}));
            EXPECT_EQ(num_different(y, expected), 0) << to_string(dtype) << " " << rows;
        }
    }
}

// By vdpbf16ps and by FMAs, as this machine and the vectors of each target have it.
TEST(Linear, RoundedRowsHaveTheBitsOfTheReference) {
    constexpr Shape kEven[] = {{0, 40, 30},    {1, 1, 2},      {1, 130, 300}, {2, 100, 128},
                               {3, 72, 258},   {4, 48, 64},    {5, 33, 1026}, {6, 200, 254},
                               {7, 65, 384},   {12, 90, 290},  {36, 50, 770}, {37, 144, 530},
                               {129, 50, 200}, {193, 24, 260}, {1, 300, 0},   {1, 20, 70000}};
    for (const Shape& shape : kEven) {
        const PlainWeight plain = PlainWeight::random(
            {.dtype = DType::bf16, .groups = 1, .out = shape.out, .in = shape.in}, 71);
        const Matrix x(shape.rows, shape.in, 72);
        const int64_t offsets[] = {0, shape.rows};
        Matrix expected(shape.rows, shape.out);
        reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr,
                               reference_rounded_dot);
        for_each_vector_target([&] {
            for (int num_threads : {1, 3}) {
                const auto kernels = make_cpu_kernels(num_threads, {.bf16_activations = true});
                Matrix y(shape.rows, shape.out);
                kernels->gemm(x.view, plain.packed(*kernels), y.view);
                EXPECT_EQ(num_different(y, expected), 0)
                    << fmt::format("[{}, {}] x {} rows", shape.out, shape.in, shape.rows);
            }
        });
    }
}

// What round_rows makes, a range of its columns too, is multiplied as what gemm rounds itself.
TEST(Linear, RowsMayBeRoundedBefore) {
    for (const bool compressed : {false, true})
        for (int64_t rows : {0, 1, 5, 14, 37, 200})
            for (int64_t in : {2, 100, 1032, 2100}) {
                const PlainWeight plain = PlainWeight::random(
                    {.dtype = DType::bf16, .groups = 1, .out = 90, .in = in}, 81);
                const Matrix x(rows, in + 6, 82);
                const Tensor part = x.view.slice_columns(4, in);
                for_each_vector_target([&] {
                    const auto kernels = make_cpu_kernels(
                        2, {.bf16_activations = true, .compress_weights = compressed});
                    ASSERT_EQ(kernels->row_dtype(DType::bf16, in), DType::bf16);
                    std::vector<uint16_t> bits(static_cast<size_t>(rows * (in + 10)), 0x7fc0);
                    const Tensor rounded(bits.data(), DType::bf16, {rows, in + 10});
                    kernels->round_rows(x.view, rounded.slice_columns(0, in + 6));
                    const Weight weight = plain.packed(*kernels);
                    Matrix y(rows, 90), expected(rows, 90);
                    kernels->gemm(rounded.slice_columns(4, in), weight, y.view);
                    kernels->gemm(part, weight, expected.view);
                    EXPECT_EQ(num_different(y, expected), 0) << rows << " rows of " << in;
                });
            }
    EXPECT_EQ(make_cpu_kernels(1)->row_dtype(DType::bf16, 2), DType::f32);
    const auto kernels = make_cpu_kernels(1, {.bf16_activations = true});
    EXPECT_EQ(kernels->row_dtype(DType::bf16, 3), DType::f32);
    EXPECT_EQ(kernels->row_dtype(DType::f32, 2), DType::f32);
}

TEST(Linear, OtherWeightsAndOddRowsAreNotRounded) {
    for (DType dtype : kTypes)
        for (int64_t in : {129, 130}) {
            if (dtype == DType::bf16 && in % 2 == 0) continue;
            const PlainWeight plain =
                PlainWeight::random({.dtype = dtype, .groups = 1, .out = 30, .in = in}, 73);
            const Matrix x(5, in, 74);
            Matrix y(5, 30), expected(5, 30);
            const auto kernels = make_cpu_kernels(1, {.bf16_activations = true}),
                       exact = make_cpu_kernels(1);
            kernels->gemm(x.view, plain.packed(*kernels), y.view);
            exact->gemm(x.view, plain.packed(*exact), expected.view);
            EXPECT_EQ(num_different(y, expected), 0) << to_string(dtype);
        }
}

TEST(Linear, RoundedRowsOfGroupsWireAndHeads) {
    const int64_t offsets[] = {0, 1, 1, 13, 60, 100};
    const int64_t groups = 5, rows = 100, in = 1030, out = 40;
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = groups, .out = out, .in = in}, 75);
    const Matrix x(rows, in, 76);
    for (DType wire : kTypes) {
        const WireMatrix sent(wire, x);
        Matrix expected(rows, out);
        reference_grouped_gemm(sent.decoded.view, offsets, plain, expected.view, nullptr,
                               reference_rounded_dot);
        for_each_vector_target([&] {
            const auto kernels = make_cpu_kernels(2, {.bf16_activations = true});
            const Weight weight = plain.packed(*kernels);
            Matrix y(rows, out), of_f32(rows, out);
            kernels->grouped_gemm_wire(sent.rows, offsets, weight, y.view);
            kernels->grouped_gemm(sent.decoded.view, offsets, weight, of_f32.view);
            EXPECT_EQ(num_different(y, expected), 0) << to_string(wire);
            EXPECT_EQ(num_different(of_f32, expected), 0) << to_string(wire);
        });
    }
    const Matrix heads(7, groups * in, 77);
    Matrix y(7, groups * out), expected(7, groups * out);
    reference_head_gemm(heads.view, in, plain, expected.view, reference_rounded_dot);
    const auto kernels = make_cpu_kernels(2, {.bf16_activations = true});
    kernels->head_gemm(heads.view, in, plain.packed(*kernels), y.view.reshape({7, groups, out}));
    EXPECT_EQ(num_different(y, expected), 0);
}

// DESIGN 4.1: a row's bits are the same alone and among others.
TEST(Linear, RowsDoNotKnowEachOther) {
    for (const bool rounded : {false, true}) {
        const auto kernels = make_cpu_kernels(2, {.bf16_activations = rounded});
        for (DType dtype : kTypes) {
            const Weight weight =
                PlainWeight::random({.dtype = dtype, .groups = 1, .out = 80, .in = 520}, 61)
                    .packed(*kernels);
            const Matrix x(64, 520, 62);
            Matrix together(64, 80), alone(64, 80);
            kernels->gemm(x.view, weight, together.view);
            for (int64_t row = 0; row < 64; ++row)
                kernels->gemm(x.view.slice_rows(row, 1), weight, alone.view.slice_rows(row, 1));
            EXPECT_EQ(num_different(alone, together), 0) << to_string(dtype);
        }
    }
}

}  // namespace
}  // namespace ferry
