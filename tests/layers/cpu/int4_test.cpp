// Products with int4 weights: codes of 4 bits, a bf16 scale for 32 of a row.
#include <gtest/gtest.h>

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

TEST(Int4, ProductsHaveTheBitsOfTheReference) {
    for (const bool rounded : {false, true})
        for (const Shape& shape : kShapes) {
            const PlainWeight plain = random_int4(1, shape.out, shape.in, 11);
            const Matrix x(shape.rows, shape.in, 12);
            const int64_t offsets[] = {0, shape.rows};
            Matrix expected(shape.rows, shape.out);
            reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr,
                                   rounded ? reference_rounded_dot : reference_dot);
            for_each_vector_target([&] {
                for (int num_threads : {1, 3}) {
                    const auto kernels =
                        make_cpu_kernels(num_threads, {.bf16_activations = rounded});
                    Matrix y(shape.rows, shape.out);
                    kernels->gemm(x.view, plain.packed(*kernels), y.view);
                    EXPECT_EQ(num_different(y, expected), 0) << fmt::format(
                        "[{}, {}] x {} rows, rounded {}", shape.out, shape.in, shape.rows, rounded);
                }
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
    for (const bool rounded : {false, true})
        for (DType wire : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
            const WireMatrix sent(wire, x);
            Matrix expected(rows, out);
            reference_grouped_gemm(sent.decoded.view, offsets, plain, expected.view, nullptr,
                                   rounded ? reference_rounded_dot : reference_dot);
            for_each_vector_target([&] {
                const auto kernels = make_cpu_kernels(2, {.bf16_activations = rounded});
                const Weight weight = plain.packed(*kernels);
                Matrix y(rows, out), of_f32(rows, out);
                kernels->grouped_gemm_wire(sent.rows, offsets, weight, y.view);
                kernels->grouped_gemm(sent.decoded.view, offsets, weight, of_f32.view);
                EXPECT_EQ(num_different(y, expected), 0) << to_string(wire);
                EXPECT_EQ(num_different(of_f32, expected), 0) << to_string(wire);
            });
        }
}

// What round_rows makes is multiplied as what gemm rounds itself.
TEST(Int4, RowsMayBeRoundedBefore) {
    const int64_t in = 1056;
    const PlainWeight plain = random_int4(1, 90, in, 81);
    for (int64_t rows : {1, 5, 14, 37, 200}) {
        const Matrix x(rows, in, 82);
        for_each_vector_target([&] {
            const auto kernels = make_cpu_kernels(2, {.bf16_activations = true});
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
