// CpuOptions::compress_weights: less memory, the same bits.
#include <gtest/gtest.h>

#include "base/error.h"
#include "layers/cpu/compressed_panel.h"
#include "layers/cpu/cpu_kernels.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_linear.h"
#include "tests/support/vector_targets.h"
#include "tests/support/wire_matrix.h"

namespace ferry {
namespace {

enum class Values { normal, many_zeros, few_wide, subnormal, tiny_and_huge };

PlainWeight make_plain(const WeightSpec& spec, Values values, uint64_t seed) {
    PlainWeight plain = PlainWeight::random(spec, seed);
    auto* bits = reinterpret_cast<uint16_t*>(plain.data.data());
    Random random(seed + 1);
    for (int64_t i = 0; i < spec.groups * spec.out * spec.in; ++i) {
        const uint32_t dice = random.next_u32();
        if (values == Values::many_zeros && dice % 4 == 0)
            bits[i] = static_cast<uint16_t>(dice & 0x8000u);
        if (values == Values::few_wide && dice % 256 == 0)  // any finite value, zeros too
            bits[i] = static_cast<uint16_t>(dice >> 16 & 0xbfffu);
        if (values == Values::subnormal) bits[i] &= 0x807fu;
        if (values == Values::tiny_and_huge)  // exponents of 1 to 8, few of 200
            bits[i] = static_cast<uint16_t>((bits[i] & 0x807fu) |
                                            (dice % 256 == 0 ? 200u : 1 + dice / 256 % 8) << 7);
    }
    return plain;
}

constexpr Values kAllValues[] = {Values::normal, Values::many_zeros, Values::few_wide,
                                 Values::subnormal, Values::tiny_and_huge};

struct Shape {
    int64_t rows, out, in;
};

// Row counts of every kind of tile, tails of panels, of units and of blocks of k.
constexpr Shape kShapes[] = {
    {0, 40, 30},   {1, 1, 1},      {1, 130, 304},   {1, 300, 2048}, {2, 100, 128}, {2, 100, 131},
    {3, 72, 258},  {4, 48, 64},    {5, 33, 1032},   {6, 200, 254},  {7, 65, 384},  {12, 90, 290},
    {36, 50, 770}, {37, 144, 530}, {129, 50, 2200}, {193, 24, 260}, {1, 300, 0},   {2, 20, 70000}};

TEST(CompressedWeights, ComeBackBitForBit) {
    for_each_vector_target([&] {
        const auto kernels = make_cpu_kernels(1, {.compress_weights = true});
        for (const Values values : kAllValues)
            for (int64_t out : {1, 16, 140})
                for (int64_t in : {1, 7, 8, 33, 256, 1001}) {
                    const PlainWeight plain =
                        make_plain({.dtype = DType::bf16, .groups = 2, .out = out, .in = in},
                                   values, static_cast<uint64_t>(out * in));
                    const Weight weight = plain.packed(*kernels);
                    Matrix w(out, in);
                    for (int64_t group = 0; group < 2; ++group) {
                        kernels->unpack(weight, group, w.view);
                        Matrix expected(out, in);
                        for (int64_t o = 0; o < out; ++o)
                            for (int64_t k = 0; k < in; ++k)
                                expected.view.row<float>(o)[k] = plain.value(group, o, k);
                        EXPECT_EQ(num_different(w, expected), 0)
                            << out << " x " << in << ", values " << static_cast<int>(values);
                    }
                }
    });
}

TEST(CompressedWeights, ProductsHaveTheBitsOfPlainOnes) {
    for (const bool rounded : {false, true})
        for (const Values values : kAllValues)
            for (const Shape& shape : kShapes) {
                const PlainWeight plain = make_plain(
                    {.dtype = DType::bf16, .groups = 1, .out = shape.out, .in = shape.in}, values,
                    3);
                const Matrix x(shape.rows, shape.in, 4);
                for_each_vector_target([&] {
                    Matrix expected(shape.rows, shape.out);
                    const auto exact = make_cpu_kernels(1, {.bf16_activations = rounded});
                    exact->gemm(x.view, plain.packed(*exact), expected.view);
                    for (int num_threads : {1, 3}) {
                        const auto kernels = make_cpu_kernels(
                            num_threads, {.bf16_activations = rounded, .compress_weights = true});
                        Matrix y(shape.rows, shape.out);
                        kernels->gemm(x.view, plain.packed(*kernels), y.view);
                        EXPECT_EQ(num_different(y, expected), 0)
                            << fmt::format("[{}, {}] x {} rows, values {}, rounded {}", shape.out,
                                           shape.in, shape.rows, static_cast<int>(values), rounded);
                    }
                });
            }
}

TEST(CompressedWeights, GroupsWireAndHeads) {
    const int64_t offsets[] = {0, 1, 1, 13, 60, 100};
    const int64_t groups = 5, rows = 100, in = 1032, out = 40;
    const PlainWeight plain = make_plain(
        {.dtype = DType::bf16, .groups = groups, .out = out, .in = in}, Values::few_wide, 5);
    const Matrix x(rows, in, 6), heads(7, groups * in, 7);
    for (const bool rounded : {false, true}) {
        const CpuOptions options{.bf16_activations = rounded, .compress_weights = true};
        const auto kernels = make_cpu_kernels(2, options),
                   exact = make_cpu_kernels(1, {.bf16_activations = rounded});
        const Weight weight = plain.packed(*kernels), plain_weight = plain.packed(*exact);
        for (DType wire : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
            const WireMatrix sent(wire, x);
            Matrix y(rows, out), expected(rows, out);
            kernels->grouped_gemm_wire(sent.rows, offsets, weight, y.view);
            exact->grouped_gemm_wire(sent.rows, offsets, plain_weight, expected.view);
            EXPECT_EQ(num_different(y, expected), 0) << to_string(wire);
        }
        Matrix y(7, groups * out), expected(7, groups * out);
        kernels->head_gemm(heads.view, in, weight, y.view.reshape({7, groups, out}));
        exact->head_gemm(heads.view, in, plain_weight, expected.view.reshape({7, groups, out}));
        EXPECT_EQ(num_different(y, expected), 0);
    }
}

TEST(CompressedWeights, TakeAQuarterLess) {
    const auto kernels = make_cpu_kernels(1, {.compress_weights = true});
    const WeightSpec spec{.dtype = DType::bf16, .groups = 3, .out = 160, .in = 2048};
    const double bits = 8 * static_cast<double>(kernels->packed_bytes(spec)) / (3 * 160 * 2048);
    EXPECT_LT(bits, 12.3);
    EXPECT_LE(bits, kCompressedBits);
    for (DType dtype : {DType::f32, DType::fp8_e4m3}) {  // others stay as they are
        const WeightSpec other{.dtype = dtype, .groups = 3, .out = 160, .in = 2048};
        EXPECT_EQ(kernels->packed_bytes(other), make_cpu_kernels(1)->packed_bytes(other));
    }
}

TEST(CompressedWeights, ValuesThatDoNotCompressAreRefusedOrReported) {
    const auto kernels = make_cpu_kernels(1, {.compress_weights = true});
    PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = 1, .out = 32, .in = 512}, 8);
    auto* bits = reinterpret_cast<uint16_t*>(plain.data.data());
    Random random(9);
    for (int64_t i = 16 * 512; i < 32 * 512; ++i)
        bits[i] = static_cast<uint16_t>(random.next_u32() & 0xbfffu);
    try {
        plain.packed(*kernels);
        FAIL() << "weights of all exponents were packed";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::checkpoint);
        EXPECT_NE(std::string(error.what()).find("outputs 16 and on do not compress"),
                  std::string::npos)
            << error.what();
    }
    std::atomic<bool> incompressible = false;
    const auto reporting =
        make_cpu_kernels(1, {.compress_weights = true, .incompressible = &incompressible});
    make_plain(plain.spec, Values::few_wide, 8).packed(*reporting);
    EXPECT_FALSE(incompressible);
    plain.packed(*reporting);
    EXPECT_TRUE(incompressible);
}

}  // namespace
}  // namespace ferry
