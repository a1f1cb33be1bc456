// Products with int4 weights: codes of 4 bits, a bf16 scale for 32 of a row.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/int4_panel.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_linear.h"
#include "tests/support/vector_targets.h"
#include "tests/support/wire_matrix.h"

namespace ferry {
namespace {

PlainWeight random_int4(int64_t groups, int64_t out, int64_t in, uint64_t seed) {
    return PlainWeight::random({.dtype = DType::int4x2, .groups = groups, .out = out, .in = in},
                               seed);
}

// Bytes of (0, 1), (2, 3), ...: the low half is the first, and 8 stands for 0.
TEST(Int4, TwoRowsByHand) {
    std::vector<uint8_t> codes(2 * 32, 0x88);
    codes[0] = 0xf0;   // -8, 7
    codes[15] = 0x29;  // k 30: 1, k 31: -6
    codes[32] = 0x8f;  // of row 1, k 0: 7
    const uint16_t bits[] = {f32_to_bf16(0.5f), f32_to_bf16(-2), f32_to_bf16(3), f32_to_bf16(1)};
    const Tensor scales(bits, DType::bf16, {2, 2});
    const auto kernels = make_cpu_kernels(1);
    Weight weight = kernels->make_weight({.dtype = DType::int4x2, .groups = 1, .out = 2, .in = 64});
    // Row 0: bytes 0 to 31; its second group begins at byte 16.
    codes[16] = 0x98;  // k 32: 0, k 33: 1
    kernels->pack(weight, 0, 0, Tensor(codes.data(), DType::int4x2, {2, 32}), &scales);
    Matrix w(2, 64);
    kernels->unpack(weight, 0, w.view);
    EXPECT_EQ(w.view.row<float>(0)[0], -4);
    EXPECT_EQ(w.view.row<float>(0)[1], 3.5f);
    EXPECT_EQ(w.view.row<float>(0)[30], 0.5f);
    EXPECT_EQ(w.view.row<float>(0)[31], -3);
    EXPECT_EQ(w.view.row<float>(0)[33], -2);
    EXPECT_EQ(w.view.row<float>(1)[0], 21);
    std::vector<float> ones(64, 1.0f);
    Matrix y(1, 2);
    kernels->gemm(Tensor(ones.data(), DType::f32, {1, 64}), weight, y.view);
    EXPECT_EQ(y.values, (std::vector<float>{-5, 21}));
}

TEST(Int4, UnpackGivesBackWhatWasPacked) {
    for_each_vector_target([] {
        const auto kernels = make_cpu_kernels(1);
        for (int64_t out : {1, 16, 130, 300})
            for (int64_t in : {32, 64, 96, 160}) {
                const PlainWeight plain = random_int4(2, out, in, 7);
                const Weight weight = plain.packed(*kernels);
                Matrix w(out, in), expected(out, in);
                kernels->unpack(weight, 1, w.view);
                for (int64_t o = 0; o < out; ++o)
                    for (int64_t k = 0; k < in; ++k)
                        expected.view.row<float>(o)[k] =
                            plain.value(1, o, k) *
                            bf16_to_f32(plain.group_scales(1).row<uint16_t>(o)[k / kInt4Group]);
                EXPECT_EQ(num_different(w, expected), 0) << out << " x " << in;
            }
    });
}

struct Shape {
    int64_t rows, out, in;
};
// Row counts of every kind of tile, tails of panels, blocks of k.
constexpr Shape kShapes[] = {{0, 40, 32},    {1, 1, 32},     {1, 130, 320},  {2, 100, 128},
                             {3, 72, 256},   {4, 48, 64},    {5, 33, 1056},  {6, 200, 224},
                             {7, 65, 384},   {12, 90, 288},  {18, 50, 768},  {19, 144, 544},
                             {37, 70, 2080}, {129, 50, 192}, {193, 24, 4128}};

// How rows are rounded.
struct Rounding {
    bool to_bf16, to_int8;
};
constexpr Rounding kRoundings[] = {{false, false}, {true, false}, {false, true}, {true, true}};

CpuOptions options_for(const Rounding& rounding) {
    return {.bf16_activations = rounding.to_bf16, .int8_activations = rounding.to_int8};
}
ReferenceDot* reference_for(const Rounding& rounding) {
    if (rounding.to_int8) return rounding.to_bf16 ? reference_rounded_int8_dot : reference_int8_dot;
    return rounding.to_bf16 ? reference_rounded_dot : reference_dot;
}
std::string describe(const Rounding& rounding) {
    return fmt::format("to bf16 {}, int8 {}", rounding.to_bf16, rounding.to_int8);
}

TEST(Int4, ProductsHaveTheBitsOfTheReference) {
    for (const Rounding& rounding : kRoundings)
        for (const Shape& shape : kShapes) {
            const PlainWeight plain = random_int4(1, shape.out, shape.in, 11);
            const Matrix x(shape.rows, shape.in, 12);
            const int64_t offsets[] = {0, shape.rows};
            Matrix expected(shape.rows, shape.out);
            reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr,
                                   reference_for(rounding));
            for_each_vector_target([&] {
                for (int num_threads : {1, 3}) {
                    const auto kernels = make_cpu_kernels(num_threads, options_for(rounding));
                    Matrix y(shape.rows, shape.out);
                    kernels->gemm(x.view, plain.packed(*kernels), y.view);
                    EXPECT_EQ(num_different(y, expected), 0)
                        << fmt::format("[{}, {}] x {} rows, ", shape.out, shape.in, shape.rows)
                        << describe(rounding);
                }
            });
        }
}

// The largest sums there are, of both signs: they fit the 16 bits that hold them on the way.
TEST(Int4, SumsOfTheLargestValues) {
    const int64_t in = 256, out = 32;
    PlainWeight plain = random_int4(1, out, in, 31);
    Matrix x(8, in, 32);
    for (int64_t row = 0; row < x.view.rows(); ++row)
        for (int64_t k = 0; k < in; ++k) {
            const bool half = k % kInt4Group >= kInt4Group / 2;
            const bool negative =
                (row & 1) != 0 || ((row & 2) != 0 && half) || ((row & 4) != 0 && k % 4 < 2);
            x.view.row<float>(row)[k] = negative ? -1.0f : 1.0f;
        }
    for (const uint8_t codes : {uint8_t{0}, uint8_t{0xff}, uint8_t{0xf0}, uint8_t{0x0f}}) {
        std::fill(plain.data.begin(), plain.data.end(), static_cast<std::byte>(codes));
        Matrix expected(x.view.rows(), out);
        const int64_t offsets[] = {0, x.view.rows()};
        reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr, reference_int8_dot);
        for_each_vector_target([&] {
            const auto kernels = make_cpu_kernels(1, {.int8_activations = true});
            Matrix y(x.view.rows(), out);
            kernels->gemm(x.view, plain.packed(*kernels), y.view);
            EXPECT_EQ(num_different(y, expected), 0) << int{codes};
        });
    }
}

// Groups of zeros, of values too small for an inverse, and of values that are no numbers.
TEST(Int4, RowsOfInt8WithoutAScale) {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const int64_t in = 96, out = 20;
    const PlainWeight plain = random_int4(1, out, in, 41);
    for (const float value : {0.0f, -0.0f, 1e-38f, -1e-42f, 9.9e-31f, 3.3e38f, kInf, -kInf, kNan}) {
        Matrix x(3, in, 42);
        const bool lost = !std::isfinite(value);
        const int64_t num = lost ? 1 : kInt4Group;
        std::fill_n(x.view.row<float>(1) + kInt4Group, num, value);
        Matrix expected(3, out);
        const int64_t offsets[] = {0, 3};
        reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr, reference_int8_dot);
        for_each_vector_target([&] {
            const auto kernels = make_cpu_kernels(1, {.int8_activations = true});
            Matrix y(3, out);
            kernels->gemm(x.view, plain.packed(*kernels), y.view);
            for (int64_t column = 0; column < out; ++column) {
                EXPECT_EQ(std::isnan(y.view.row<float>(1)[column]), lost) << value;
                if (lost) y.view.row<float>(1)[column] = expected.view.row<float>(1)[column];
            }
            EXPECT_EQ(num_different(y, expected), 0) << value;
        });
    }
}

// Sums in the order of AMX are asked for of bf16 weights only; compressed panels, too.
TEST(Int4, SettingsOfOtherWeightsDoNotMatter) {
    const PlainWeight plain = random_int4(1, 90, 320, 21);
    const Matrix x(20, 320, 22);
    const auto kernels = make_cpu_kernels(1, {.bf16_activations = true});
    Matrix expected(20, 90);
    kernels->gemm(x.view, plain.packed(*kernels), expected.view);
    const auto others =
        make_cpu_kernels(1, {.bf16_activations = true, .amx_sums = true, .compress_weights = true});
    Matrix y(20, 90);
    others->gemm(x.view, plain.packed(*others), y.view);
    EXPECT_EQ(num_different(y, expected), 0);
}

TEST(Int4, GroupsAndRowsThatTravelled) {
    const int64_t offsets[] = {0, 1, 1, 13, 48, 100};
    const int64_t groups = 5, rows = 100, in = 5312, out = 40;
    const Matrix x(rows, in, 61);
    const PlainWeight plain = random_int4(groups, out, in, 62);
    for (const Rounding& rounding : kRoundings)
        for (DType wire : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
            const WireMatrix sent(wire, x);
            Matrix expected(rows, out);
            reference_grouped_gemm(sent.decoded.view, offsets, plain, expected.view, nullptr,
                                   reference_for(rounding));
            for_each_vector_target([&] {
                const auto kernels = make_cpu_kernels(2, options_for(rounding));
                const Weight weight = plain.packed(*kernels);
                Matrix y(rows, out), of_f32(rows, out);
                kernels->grouped_gemm_wire(sent.rows, offsets, weight, y.view);
                kernels->grouped_gemm(sent.decoded.view, offsets, weight, of_f32.view);
                EXPECT_EQ(num_different(y, expected), 0) << to_string(wire) << describe(rounding);
                EXPECT_EQ(num_different(of_f32, expected), 0)
                    << to_string(wire) << describe(rounding);
            });
        }
}

// What round_rows makes is multiplied as what gemm rounds itself.
TEST(Int4, RowsMayBeRoundedBefore) {
    const int64_t in = 1056;
    const PlainWeight plain = random_int4(1, 90, in, 81);
    for (const bool to_int8 : {false, true})
        for (int64_t rows : {1, 5, 14, 37, 200}) {
            const Matrix x(rows, in, 82);
            for_each_vector_target([&] {
                const auto kernels = make_cpu_kernels(2, options_for({true, to_int8}));
                ASSERT_EQ(kernels->row_dtype(DType::int4x2, in), DType::bf16);
                std::vector<uint16_t> bits(static_cast<size_t>(rows * in));
                const Tensor rounded(bits.data(), DType::bf16, {rows, in});
                kernels->round_rows(x.view, rounded);
                const Weight weight = plain.packed(*kernels);
                Matrix y(rows, 90), expected(rows, 90);
                kernels->gemm(rounded, weight, y.view);
                kernels->gemm(x.view, weight, expected.view);
                EXPECT_EQ(num_different(y, expected), 0) << rows;
            });
        }
}

TEST(Int4, ScalesThatAreNoNumbersAreRefused) {
    const PlainWeight good = random_int4(1, 20, 96, 5);
    for (const uint16_t bad : {uint16_t{0x7f80}, uint16_t{0xffc0}}) {
        PlainWeight plain = good;
        plain.group_of_32_scales[17 * 3 + 2] = bad;
        const auto kernels = make_cpu_kernels(1);
        try {
            (void)plain.packed(*kernels);
            FAIL() << "a scale that is no number was packed";
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::checkpoint);
            EXPECT_NE(std::string(error.what()).find("[17, 2]"), std::string::npos) << error.what();
        }
    }
}

TEST(Int4, PanelsTakeFourAndAHalfBitsAValue) {
    const auto kernels = make_cpu_kernels(1);
    const int64_t bytes =
        kernels->packed_bytes({.dtype = DType::int4x2, .groups = 3, .out = 2048, .in = 7168});
    EXPECT_EQ(bytes, 3 * 2048 * (7168 / 2 + 7168 / 32 * 2));
}

}  // namespace
}  // namespace ferry
