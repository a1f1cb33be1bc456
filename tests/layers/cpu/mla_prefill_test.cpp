#include "tests/layers/cpu/attention_support.h"
#include "tests/support/reference_attention.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

struct Shape {
    int64_t heads, nope, rope, v, kv_lora;
};

// One sequence of `positions` prompt rows.
struct Prompt {
    Prompt(const Shape& s, int64_t num_positions)
        : shape(s),
          positions(num_positions),
          q(random_tensor({positions, s.heads, s.nope + s.rope}, 1)),
          kv(random_tensor({positions, s.heads, s.nope + s.v}, 2)),
          latent(random_tensor({positions, s.kv_lora + s.rope}, 3)) {}

    // Rows [first, first + num) as one chunk, into `out` [positions, heads, v].
    PrefillAttention chunk(int64_t first, int64_t num, const Tensor& out) const {
        return {
            .q = q.view().slice_rows(first, num),
            .kv = kv.view().slice_rows(0, first + num),
            .rope =
                latent.view().slice_columns(shape.kv_lora, shape.rope).slice_rows(0, first + num),
            .out = out.slice_rows(first, num),
            .rows = {.first_row = 0, .num_rows = num, .first_position = first},
            .nope_dim = shape.nope,
            .rope_dim = shape.rope,
            .v_dim = shape.v,
            .scale = 0.2f};
    }
    OwnedTensor output() const { return zeros({positions, shape.heads, shape.v}); }

    Shape shape;
    int64_t positions;
    OwnedTensor q, kv, latent;
};

constexpr Shape kSmall{.heads = 3, .nope = 24, .rope = 8, .v = 20, .kv_lora = 16};
// Nothing of it is even.
constexpr Shape kOdd{.heads = 2, .nope = 5, .rope = 4, .v = 7, .kv_lora = 6};
constexpr Shape kPublished{.heads = 2, .nope = 128, .rope = 64, .v = 128, .kv_lora = 512};

// Two keys, worked by hand: scores 1 and 0 (times scale), values 2 and 4.
TEST(MlaPrefill, TwoKeysByHand) {
    const float q[] = {1, 0, 1, 0}, kv[] = {1, 2, 0, 4}, rope[] = {0, 0};
    float out[2] = {};
    auto kernels = make_cpu_kernels(1);
    kernels->mla_prefill({.q = Tensor(q, DType::f32, {2, 1, 2}),
                          .kv = Tensor(kv, DType::f32, {2, 1, 2}),
                          .rope = Tensor(rope, DType::f32, {2, 1}),
                          .out = Tensor(out, DType::f32, {2, 1, 1}),
                          .rows = {.first_row = 0, .num_rows = 2, .first_position = 0},
                          .nope_dim = 1,
                          .rope_dim = 1,
                          .v_dim = 1,
                          .scale = 1});
    EXPECT_FLOAT_EQ(out[0], 2);
    EXPECT_FLOAT_EQ(out[1], (2 * std::exp(1.0f) + 4) / (std::exp(1.0f) + 1));
}

// With and without rounding to bf16.
class MlaPrefillBits : public ::testing::TestWithParam<bool> {
  protected:
    std::unique_ptr<Kernels> kernels(int threads) const {
        return make_cpu_kernels(threads, {.bf16_activations = GetParam()});
    }
};
INSTANTIATE_TEST_SUITE_P(ExactAndRounded, MlaPrefillBits, ::testing::Bool());

TEST_P(MlaPrefillBits, AreThoseOfTheReference) {
    for (const Shape& shape : {kSmall, kOdd, kPublished})
        for (int64_t positions : {1, 2, 15, 16, 17, 63, 64, 65, 200}) {
            const Prompt prompt(shape, positions);
            const OwnedTensor expected = prompt.output();
            reference_prefill(prompt.chunk(0, positions, expected), GetParam());
            for_each_vector_target([&] {
                for (int threads : {1, 2, 3}) {
                    const OwnedTensor out = prompt.output();
                    kernels(threads)->mla_prefill(prompt.chunk(0, positions, out));
                    EXPECT_EQ(different_rows(out, expected), std::vector<int64_t>())
                        << positions << " positions, " << threads << " threads";
                }
            });
        }
}

TEST_P(MlaPrefillBits, DoNotDependOnChunks) {
    constexpr int64_t kPositions = 1000;
    for (const Shape& shape : {kSmall, kOdd}) {
        const Prompt prompt(shape, kPositions);
        const OwnedTensor expected = prompt.output();
        const auto two_threads = kernels(2);
        two_threads->mla_prefill(prompt.chunk(0, kPositions, expected));
        for (int64_t size : {1, 7, 64, 130}) {
            const OwnedTensor out = prompt.output();
            for (int64_t first = 0; first < kPositions; first += size)
                two_threads->mla_prefill(
                    prompt.chunk(first, std::min(size, kPositions - first), out));
            EXPECT_EQ(different_rows(out, expected), std::vector<int64_t>())
                << "chunks of " << size;
        }
    }
}

// Keys that a mask leaves out have no weight; whole blocks of them, in front of what is taken, too.
// Rows of few keys take all, whatever their mask says.
TEST_P(MlaPrefillBits, OfSomeKeysAreThoseOfTheReference) {
    constexpr int64_t kPositions = 300, kTopk = 75;
    constexpr int64_t kWords = 2 * ((kPositions + kPageTokens - 1) / kPageTokens);
    for (const Shape& shape : {kSmall, kOdd, kPublished}) {
        const Prompt prompt(shape, kPositions);
        const OwnedTensor mask(cpu_device(), DType::i32, {kPositions, kWords});
        Random random(4);
        for (int64_t row = 0; row < kPositions; ++row) {
            auto* const words = mask.view().row<uint32_t>(row);
            std::fill_n(words, kWords, 0u);
            const int64_t first = row % 3 == 0 ? row / 2 : 0;
            for (int64_t key = first; key <= row; ++key)
                if ((key == row && row >= kTopk) || random.next_u32() % 4 == 0)
                    words[key / 32] |= 1u << key % 32;
        }
        const auto chunk = [&](int64_t first, int64_t num, const Tensor& out) {
            PrefillAttention attention = prompt.chunk(first, num, out);
            attention.mask = mask.view().slice_rows(first, num);
            attention.topk = kTopk;
            return attention;
        };
        const OwnedTensor expected = prompt.output();
        reference_prefill(chunk(0, kPositions, expected), GetParam());
        for (const float value :
             std::span(expected.view().as<float>(), static_cast<size_t>(expected.view().count())))
            ASSERT_TRUE(std::isfinite(value));
        for_each_vector_target([&] {
            for (int64_t size : {kPositions, int64_t{70}}) {
                const OwnedTensor out = prompt.output();
                for (int64_t first = 0; first < kPositions; first += size)
                    kernels(2)->mla_prefill(chunk(first, std::min(size, kPositions - first), out));
                EXPECT_EQ(different_rows(out, expected), std::vector<int64_t>())
                    << "chunks of " << size;
            }
        });
    }
    // One that leaves none out changes no bit.
    const Prompt prompt(kSmall, 100);
    OwnedTensor all(cpu_device(), DType::i32, {100, 4});
    std::fill_n(all.view().as<uint32_t>(), 400, ~0u);
    const OwnedTensor expected = prompt.output(), out = prompt.output();
    kernels(1)->mla_prefill(prompt.chunk(0, 100, expected));
    PrefillAttention attention = prompt.chunk(0, 100, out);
    attention.mask = all;
    kernels(1)->mla_prefill(attention);
    EXPECT_EQ(different_rows(out, expected), std::vector<int64_t>());
}

// Later keys take no part at all: not even infinities and NaNs in them.
TEST_P(MlaPrefillBits, DoNotDependOnLaterKeys) {
    for (int64_t spoilt : {70, 71}) {
        const Prompt prompt(kSmall, 100);
        const OwnedTensor expected = prompt.output(), out = prompt.output();
        const auto one_thread = kernels(1);
        one_thread->mla_prefill(prompt.chunk(0, 100, expected));
        for (int64_t i = 0; i < prompt.kv.view().row_size(); ++i)
            prompt.kv.view().row<float>(spoilt)[i] = std::numeric_limits<float>::quiet_NaN();
        one_thread->mla_prefill(prompt.chunk(0, 100, out));
        std::vector<int64_t> after;
        for (int64_t row = spoilt; row < 100; ++row) after.push_back(row);
        EXPECT_EQ(different_rows(out, expected), after);
    }
}

// Heads as a range of columns of wider tensors, rows in the middle of a batch.
TEST(MlaPrefill, StridedViewsInABatch) {
    const Prompt prompt(kSmall, 40);
    const OwnedTensor expected = prompt.output();
    reference_prefill(prompt.chunk(0, 40, expected));
    const int64_t qk = kSmall.nope + kSmall.rope;
    const OwnedTensor q = random_tensor({50, 5, qk}, 4), wide_out = random_tensor({50, 5, 20}, 5);
    const auto heads = [](const Tensor& x, int64_t dim) {
        return x.reshape({50, 5 * dim}).slice_columns(2 * dim, 3 * dim).reshape({50, 3, dim});
    };
    PrefillAttention attention = prompt.chunk(0, 40, expected);
    attention.q = heads(q, qk);
    attention.out = heads(wide_out, kSmall.v);
    attention.rows.first_row = 6;
    for (int64_t row = 0; row < 40; ++row)
        std::memcpy(attention.q.row<float>(6 + row), prompt.q.view().row<float>(row),
                    static_cast<size_t>(3 * qk) * sizeof(float));
    const float before = wide_out.view().row<float>(5)[0],
                outside = wide_out.view().row<float>(6)[0];
    make_cpu_kernels(2)->mla_prefill(attention);
    EXPECT_EQ(different_rows(attention.out.slice_rows(6, 40), expected), std::vector<int64_t>());
    EXPECT_EQ(wide_out.view().row<float>(5)[0], before);
    EXPECT_EQ(wide_out.view().row<float>(6)[0], outside);
}

TEST(MlaPrefill, ZeroRows) {
    const Prompt prompt(kSmall, 4);
    const OwnedTensor out = prompt.output();
    make_cpu_kernels(2)->mla_prefill(prompt.chunk(4, 0, out));
    EXPECT_EQ(largest_difference(out, prompt.output()), 0);
}

}  // namespace
}  // namespace ferry
