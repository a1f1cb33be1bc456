#include <gtest/gtest.h>

#include <cmath>

#include "layers/cpu/amx.h"
#include "layers/cpu/cpu_kernels.h"
#include "tests/support/amx_emulation.h"
#include "tests/support/matrix.h"
#include "tests/support/reference_linear.h"
#include "tests/support/vector_targets.h"
#include "tests/support/wire_matrix.h"

namespace ferry {
namespace {

struct Shape {
    int64_t rows, out, in;
};
constexpr Shape kShapes[] = {
    {0, 40, 30},   {1, 1, 2},      {1, 130, 300}, {2, 100, 128}, {3, 72, 258},  {6, 33, 1026},
    {15, 16, 64},  {16, 48, 32},   {17, 32, 96},  {32, 65, 384}, {33, 90, 290}, {36, 50, 770},
    {64, 40, 530}, {70, 144, 200}, {193, 24, 90}, {1, 20, 5000}, {1, 20, 0}};

CpuOptions amx_options(bool compressed = false) {
    return {.bf16_activations = true, .amx_sums = true, .compress_weights = compressed};
}

void expect_bits_of_the_reference() {
    for (const Shape& shape : kShapes) {
        const PlainWeight plain = PlainWeight::random(
            {.dtype = DType::bf16, .groups = 1, .out = shape.out, .in = shape.in}, 71);
        const Matrix x(shape.rows, shape.in, 72);
        const int64_t offsets[] = {0, shape.rows};
        Matrix expected(shape.rows, shape.out);
        reference_grouped_gemm(x.view, offsets, plain, expected.view, nullptr, reference_amx_dot);
        std::vector<uint16_t> bits(static_cast<size_t>(shape.rows * (shape.in + 6)), 0x7fc0);
        const Tensor rounded =
            Tensor(bits.data(), DType::bf16, {shape.rows, shape.in + 6}).slice_columns(2, shape.in);
        for (const bool compressed : {false, true})
            for (const int num_threads : {1, 3}) {
                SCOPED_TRACE(fmt::format("[{}, {}] x {} rows, {} threads, {}", shape.out, shape.in,
                                         shape.rows, num_threads,
                                         compressed ? "compressed" : "plain"));
                const auto kernels = make_cpu_kernels(num_threads, amx_options(compressed));
                const Weight weight = plain.packed(*kernels);
                Matrix y(shape.rows, shape.out), of_rounded(shape.rows, shape.out);
                kernels->gemm(x.view, weight, y.view);
                EXPECT_EQ(num_different(y, expected), 0);
                kernels->round_rows(x.view, rounded);
                kernels->gemm(rounded, weight, of_rounded.view);
                EXPECT_EQ(num_different(of_rounded, expected), 0);
            }
    }
}

TEST(AmxSums, HaveTheBitsOfTheFormulaOnEveryProcessor) {
    for_each_vector_target(expect_bits_of_the_reference);
}

// Not on a processor that has none of AVX-512: those with AMX have it.
class AmxInstructions : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!emulation_.is_built()) GTEST_SKIP() << "built without AMX";
        if (!uses_bf16_dots()) GTEST_SKIP() << "no AVX512_BF16 on this processor";
        is_native_ = uses_amx() && AmxEmulation::num_products() == 0;
        products_before_ = AmxEmulation::num_products();
        faults_before_ = AmxEmulation::num_faults();
    }
    void TearDown() override {
        if (IsSkipped()) return;
        EXPECT_TRUE(uses_amx());
        EXPECT_EQ(AmxEmulation::num_faults(), faults_before_);
        EXPECT_FALSE(AmxEmulation::has_shapes());
        EXPECT_TRUE(is_native_ || AmxEmulation::num_products() > products_before_);
    }

    AmxEmulation emulation_;
    bool is_native_ = false;
    int64_t products_before_ = 0, faults_before_ = 0;
};

TEST_F(AmxInstructions, HaveTheBitsOfTheFormula) {
    expect_bits_of_the_reference();
}

TEST_F(AmxInstructions, OfGroupsWireAndHeads) {
    const int64_t offsets[] = {0, 1, 1, 13, 60, 100};
    const int64_t groups = 5, rows = 100, in = 1030, out = 40;
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::bf16, .groups = groups, .out = out, .in = in}, 75);
    const Matrix x(rows, in, 76), heads(7, groups * in, 77);
    for (const bool compressed : {false, true}) {
        const auto kernels = make_cpu_kernels(2, amx_options(compressed));
        const Weight weight = plain.packed(*kernels);
        for (DType wire : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
            const WireMatrix sent(wire, x);
            Matrix expected(rows, out), y(rows, out);
            reference_grouped_gemm(sent.decoded.view, offsets, plain, expected.view, nullptr,
                                   reference_amx_dot);
            kernels->grouped_gemm_wire(sent.rows, offsets, weight, y.view);
            EXPECT_EQ(num_different(y, expected), 0) << to_string(wire);
        }
        Matrix y(7, groups * out), expected(7, groups * out);
        kernels->head_gemm(heads.view, in, weight, y.view.reshape({7, groups, out}));
        reference_head_gemm(heads.view, in, plain, expected.view, reference_amx_dot);
        EXPECT_EQ(num_different(y, expected), 0);
    }
}

TEST(AmxSums, OtherWeightsAreSummedAsBefore) {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        const int64_t in = dtype == DType::bf16 ? 129 : 130;  // odd rows are not rounded
        const PlainWeight plain =
            PlainWeight::random({.dtype = dtype, .groups = 1, .out = 30, .in = in}, 73);
        const Matrix x(5, in, 74);
        Matrix y(5, 30), expected(5, 30);
        const auto kernels = make_cpu_kernels(1, amx_options()), exact = make_cpu_kernels(1);
        kernels->gemm(x.view, plain.packed(*kernels), y.view);
        exact->gemm(x.view, plain.packed(*exact), expected.view);
        EXPECT_EQ(num_different(y, expected), 0) << to_string(dtype);
    }
}

}  // namespace
}  // namespace ferry
