#include <cstring>
#include <numeric>

#include "tests/layers/cpu/attention_support.h"
#include "tests/support/reference_attention.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

struct Shape {
    int64_t heads, kv_lora, rope;
};
constexpr Shape kSmall{.heads = 3, .kv_lora = 24, .rope = 8};
constexpr Shape kPublished{.heads = 4, .kv_lora = 512, .rope = 64};

// Sequences given by (first position, rows), their pages dealt out in a shuffled order.
struct Batch {
    using Sequence = std::pair<int64_t, int64_t>;

    Batch(const Shape& shape, const std::vector<Sequence>& list, DType dtype, uint64_t seed = 1) {
        int64_t rows = 0, pages = 0;
        for (const auto& [position, num_rows] : list) {
            rows += num_rows;
            pages += ceil_div(position + num_rows, kPageTokens);
        }
        order.resize(static_cast<size_t>(pages));
        std::iota(order.begin(), order.end(), 0);
        Random random(seed);
        for (size_t i = order.size(); i > 1; --i)
            std::swap(order[i - 1], order[random.next_u32() % i]);
        q_latent = random_tensor({rows, shape.heads, shape.kv_lora}, 10);
        q_rope = random_tensor({rows, shape.heads, shape.rope}, 11);
        out = zeros({rows, shape.heads, shape.kv_lora});
        cache = random_tensor(
            {std::max<int64_t>(pages, 1), kPageTokens, shape.kv_lora + shape.rope}, 12, dtype);
        rows = pages = 0;
        for (const auto& [position, num_rows] : list) {
            const int64_t used = ceil_div(position + num_rows, kPageTokens);
            sequences.push_back({.first_row = rows,
                                 .num_rows = num_rows,
                                 .first_position = position,
                                 .pages = std::span(order).subspan(static_cast<size_t>(pages),
                                                                   static_cast<size_t>(used))});
            rows += num_rows;
            pages += used;
        }
    }

    DecodeAttention attention(const Tensor& to) const {
        return {.q_latent = q_latent,
                .q_rope = q_rope,
                .cache = cache,
                .out = to,
                .sequences = sequences,
                .scale = 0.1f};
    }
    OwnedTensor run(int threads) const {
        const Tensor& o = out;
        OwnedTensor result = zeros({o.dim(0), o.dim(1), o.dim(2)});
        make_cpu_kernels(threads, {.bf16_activations = rounded})->mla_decode(attention(result));
        return result;
    }
    OwnedTensor reference() const {
        const Tensor& o = out;
        OwnedTensor result = zeros({o.dim(0), o.dim(1), o.dim(2)});
        reference_decode(attention(result), rounded);
        return result;
    }

    OwnedTensor q_latent, q_rope, cache, out;
    std::vector<int32_t> order;
    std::vector<SequenceRows> sequences;
    bool rounded = false;  // factors to bf16
};

// With and without rounding to bf16.
class MlaDecodeBits : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(ExactAndRounded, MlaDecodeBits, ::testing::Bool());

// Two keys, worked by hand: latents 2 and 4, of which the rope part alone makes scores 1 and 0.
TEST(MlaDecode, TwoKeysByHand) {
    std::vector<float> cache(kPageTokens * 2);
    cache[0] = 2, cache[1] = 1, cache[2] = 4, cache[3] = 0;
    const float q_latent[] = {0}, q_rope[] = {1};
    const int32_t pages[] = {0};
    const SequenceRows rows{.first_row = 0, .num_rows = 1, .first_position = 1, .pages = pages};
    float out[1] = {};
    make_cpu_kernels(1)->mla_decode({.q_latent = Tensor(q_latent, DType::f32, {1, 1, 1}),
                                     .q_rope = Tensor(q_rope, DType::f32, {1, 1, 1}),
                                     .cache = Tensor(cache.data(), DType::f32, {1, kPageTokens, 2}),
                                     .out = Tensor(out, DType::f32, {1, 1, 1}),
                                     .sequences = std::span(&rows, 1),
                                     .scale = 1});
    EXPECT_FLOAT_EQ(out[0], (2 * std::exp(1.0f) + 4) / (std::exp(1.0f) + 1));
}

TEST_P(MlaDecodeBits, AreThoseOfTheReference) {
    for (const Shape& shape : {kSmall, kPublished, Shape{.heads = 20, .kv_lora = 32, .rope = 16},
                               Shape{.heads = 3, .kv_lora = 7, .rope = 5}})
        for (DType dtype : {DType::f32, DType::bf16}) {
            const bool small = shape.kv_lora < 100;
            Batch batch(shape,
                        {{0, 1}, {62, 1}, {63, 1}, {64, 1}, {511, 2}, {small ? 1999 : 600, 1}},
                        dtype);
            batch.rounded = GetParam();
            const OwnedTensor expected = batch.reference();
            for_each_vector_target([&] {
                for (int threads : small ? std::vector{1, 2, 3} : std::vector{2})
                    EXPECT_EQ(different_rows(batch.run(threads), expected), std::vector<int64_t>())
                        << shape.heads << " heads, " << to_string(dtype) << ", " << threads
                        << " threads";
            });
        }
}

// Few rows of short sequences: threads share what is one task otherwise.
TEST_P(MlaDecodeBits, OfTasksThatThreadsShareAreThoseOfTheReference) {
    const Shape shapes[] = {kSmall,
                            kPublished,
                            {.heads = 20, .kv_lora = 32, .rope = 16},
                            {.heads = 3, .kv_lora = 7, .rope = 5}};
    const std::vector<Batch::Sequence> lists[] = {
        {{0, 1}}, {{63, 1}}, {{200, 1}}, {{447, 1}}, {{510, 3}}, {{70, 5}, {130, 1}, {30, 1}}};
    for (const Shape& shape : shapes)
        for (DType dtype : {DType::f32, DType::bf16})
            for (const auto& list : lists) {
                Batch batch(shape, list, dtype);
                batch.rounded = GetParam();
                const OwnedTensor expected = batch.reference();
                for_each_vector_target([&] {
                    for (int threads : {2, 3, 7})
                        EXPECT_EQ(different_rows(batch.run(threads), expected),
                                  std::vector<int64_t>())
                            << shape.heads << " heads, " << to_string(dtype) << ", first list at "
                            << list[0].first << ", " << threads << " threads";
                });
            }
}

// A preempted sequence computes many rows at once, over pages that they share.
TEST_P(MlaDecodeBits, OfManyRowsOfOneSequenceAreThoseOfOneByOne) {
    const Shape shape{.heads = 5, .kv_lora = 64, .rope = 16};
    Batch batch(shape, {{450, 130}}, DType::bf16);
    batch.rounded = GetParam();
    const OwnedTensor together = batch.run(3);
    const OwnedTensor alone = zeros({130, shape.heads, shape.kv_lora});
    auto kernels = make_cpu_kernels(1, {.bf16_activations = GetParam()});
    for (int64_t row = 0; row < 130; ++row) {
        SequenceRows rows = batch.sequences[0];
        rows.first_row = row;
        rows.first_position += row;
        rows.num_rows = 1;
        DecodeAttention attention = batch.attention(alone);
        attention.sequences = std::span(&rows, 1);
        kernels->mla_decode(attention);
    }
    EXPECT_EQ(different_rows(together, alone), std::vector<int64_t>());
    EXPECT_EQ(different_rows(together, batch.reference()), std::vector<int64_t>());
}

TEST(MlaDecode, OtherSequencesDoNotChangeBits) {
    const Batch batch(kSmall, {{999, 1}, {10, 1}, {3000, 1}, {511, 3}}, DType::f32);
    const OwnedTensor together = batch.run(2);
    const OwnedTensor alone = zeros({6, kSmall.heads, kSmall.kv_lora});
    for (const SequenceRows& rows : batch.sequences) {
        DecodeAttention attention = batch.attention(alone);
        attention.sequences = std::span(&rows, 1);
        make_cpu_kernels(1)->mla_decode(attention);
    }
    EXPECT_EQ(different_rows(together, alone), std::vector<int64_t>());
}

// More splits than results fit into scratch at once: rows are carried from wave to wave. The
// sequences go round a few pages again and again.
TEST_P(MlaDecodeBits, OfUnfinishedRowsAreCarriedFromWaveToWave) {
    const Shape shape{.heads = 1, .kv_lora = 2048, .rope = 8};
    Batch batch(shape, {{300, 1}, {300, 1}}, DType::bf16);
    batch.rounded = GetParam();
    std::vector<int32_t> pages;
    for (int i = 0; i < 500; ++i) pages.push_back(i * i % static_cast<int>(batch.order.size()));
    int64_t position = 9000;  // 32 splits, then 45; a thread has room for 23 at most
    for (SequenceRows& rows : batch.sequences) {
        rows.pages = pages;
        rows.first_position = position += 7000;
    }
    const OwnedTensor expected = batch.reference();
    EXPECT_EQ(different_rows(batch.run(1), expected), std::vector<int64_t>());
    EXPECT_EQ(different_rows(batch.run(2), expected), std::vector<int64_t>());
}

// Keys that a row chose are as good as a cache that holds these alone; rows with no more than there
// are to choose have them all, whatever their list says.
TEST_P(MlaDecodeBits, OfChosenKeysAreThoseOfACacheOfThem) {
    constexpr int64_t kTopk = 700;
    for (const Shape& shape : {kSmall, kPublished, Shape{.heads = 35, .kv_lora = 7, .rope = 5}})
        for (DType dtype : {DType::f32, DType::bf16}) {
            Batch batch(shape, {{900, 3}, {40, 1}, {698, 4}}, dtype);
            batch.rounded = GetParam();
            const int64_t width = shape.kv_lora + shape.rope, pages = ceil_div(kTopk, kPageTokens);
            const OwnedTensor chosen(cpu_device(), DType::i32, {8, kTopk});
            std::fill_n(chosen.view().as<int32_t>(), chosen.view().count(), 0);
            const OwnedTensor gathered(cpu_device(), dtype, {8 * pages, kPageTokens, width});
            const OwnedTensor expected = zeros({8, shape.heads, shape.kv_lora});
            std::vector<int32_t> own_pages(static_cast<size_t>(8 * pages));
            std::iota(own_pages.begin(), own_pages.end(), 0);
            std::vector<SequenceRows> of_chosen;
            Random random(3);
            for (const SequenceRows& rows : batch.sequences)
                for (int64_t i = 0; i < rows.num_rows; ++i) {
                    const int64_t row = rows.first_row + i, keys = rows.first_position + i + 1;
                    const int64_t num = std::min(keys, kTopk);
                    std::vector<int32_t> positions(static_cast<size_t>(keys));
                    std::iota(positions.begin(), positions.end(), 0);
                    while (std::ssize(positions) > num)
                        positions.erase(positions.begin() + random.next_u32() % positions.size());
                    if (keys > kTopk)
                        std::copy(positions.begin(), positions.end(),
                                  chosen.view().row<int32_t>(row));
                    const int64_t bytes = width * size_bytes(dtype);
                    for (int64_t j = 0; j < num; ++j) {
                        const int64_t position = positions[static_cast<size_t>(j)];
                        const int64_t page =
                            rows.pages[static_cast<size_t>(position / kPageTokens)];
                        std::memcpy(gathered.view().as<std::byte>() +
                                        (row * pages * kPageTokens + j) * bytes,
                                    batch.cache.view().as<std::byte>() +
                                        (page * kPageTokens + position % kPageTokens) * bytes,
                                    static_cast<size_t>(bytes));
                    }
                    of_chosen.push_back(
                        {.first_row = row,
                         .num_rows = 1,
                         .first_position = num - 1,
                         .pages = std::span(own_pages).subspan(static_cast<size_t>(row * pages),
                                                               static_cast<size_t>(pages))});
                }
            DecodeAttention of_them = batch.attention(expected);
            of_them.cache = gathered;
            of_them.sequences = of_chosen;
            reference_decode(of_them, batch.rounded);
            for_each_vector_target([&] {
                for (int threads : {1, 2, 7}) {
                    const OwnedTensor out = zeros({8, shape.heads, shape.kv_lora});
                    DecodeAttention attention = batch.attention(out);
                    attention.chosen = chosen;
                    make_cpu_kernels(threads, {.bf16_activations = batch.rounded})
                        ->mla_decode(attention);
                    EXPECT_EQ(different_rows(out, expected), std::vector<int64_t>())
                        << shape.heads << " heads, " << to_string(dtype) << ", " << threads;
                }
            });
        }
}

TEST_P(MlaDecodeBits, DoNotDependOnLaterKeys) {
    for (int64_t position : {69, 70}) {
        Batch batch(kSmall, {{position, 1}}, DType::f32);
        batch.rounded = GetParam();
        const OwnedTensor expected = batch.run(1);
        const int64_t width = kSmall.kv_lora + kSmall.rope;
        float* page = batch.cache.view().as<float>() + batch.order[1] * kPageTokens * width;
        std::fill(page + (position + 1 - kPageTokens) * width, page + kPageTokens * width,
                  std::numeric_limits<float>::quiet_NaN());
        EXPECT_EQ(different_rows(batch.run(1), expected), std::vector<int64_t>());
    }
}

// Uniform scores: the mean of the latents.
TEST(MlaDecode, EqualScoresGiveTheMean) {
    const Batch batch(kPublished, {{999, 1}}, DType::f32);
    std::fill_n(batch.q_latent.view().as<float>(), batch.q_latent.view().count(), 0.0f);
    std::fill_n(batch.q_rope.view().as<float>(), batch.q_rope.view().count(), 0.0f);
    const OwnedTensor result = batch.run(2);
    for (int64_t column : {0, 17, 511}) {
        double mean = 0;
        for (int64_t j = 0; j < 1000; ++j) {
            const int64_t page = batch.order[static_cast<size_t>(j / kPageTokens)];
            mean += batch.cache.view()
                        .as<float>()[(page * kPageTokens + j % kPageTokens) * 576 + column];
        }
        EXPECT_NEAR(result.view().as<float>()[3 * 512 + column], mean / 1000, 1e-5);
    }
}

// Both forms are the same attention (MODEL.md "MLA"): keys and values rebuilt from the latents, or
// their matrices moved into query and output.
TEST(MlaDecode, AgreesWithTheExpandedForm) {
    constexpr int64_t kHeads = 4, kNope = 16, kRope = 8, kValue = 12, kRank = 32, kKeys = 700;
    const OwnedTensor w = random_tensor({kHeads, kNope + kValue, kRank}, 20);
    const OwnedTensor q = random_tensor({kKeys, kHeads, kNope + kRope}, 21);
    const Batch batch({.heads = kHeads, .kv_lora = kRank, .rope = kRope}, {{kKeys - 1, 1}},
                      DType::f32);
    const OwnedTensor latent = zeros({kKeys, kRank + kRope});
    auto kernels = make_cpu_kernels(2);
    kernels->read_cache(batch.cache, batch.order, 0, latent);

    const auto matrix = [&](int64_t head, int64_t row) {
        return w.view().row<float>(head) + row * kRank;
    };
    const OwnedTensor kv = zeros({kKeys, kHeads, kNope + kValue});
    for (int64_t j = 0; j < kKeys; ++j)
        for (int64_t i = 0; i < kHeads * (kNope + kValue); ++i)
            kv.view().row<float>(j)[i] =
                std::inner_product(latent.view().row<float>(j), latent.view().row<float>(j) + kRank,
                                   w.view().as<float>() + i * kRank, 0.0f);
    const OwnedTensor expanded = zeros({kKeys, kHeads, kValue});
    kernels->mla_prefill({.q = q,
                          .kv = kv,
                          .rope = latent.view().slice_columns(kRank, kRope),
                          .out = expanded,
                          .rows = {.first_row = 0, .num_rows = kKeys, .first_position = 0},
                          .nope_dim = kNope,
                          .rope_dim = kRope,
                          .v_dim = kValue,
                          .scale = 0.05f});

    const float* last = q.view().row<float>(kKeys - 1);
    for (int64_t head = 0; head < kHeads; ++head) {
        float* q_latent = batch.q_latent.view().as<float>() + head * kRank;
        std::fill_n(q_latent, kRank, 0.0f);
        for (int64_t i = 0; i < kNope; ++i)
            for (int64_t c = 0; c < kRank; ++c)
                q_latent[c] += last[head * (kNope + kRope) + i] * matrix(head, i)[c];
        std::copy_n(last + head * (kNope + kRope) + kNope, kRope,
                    batch.q_rope.view().as<float>() + head * kRope);
    }
    const OwnedTensor o_latent = zeros({1, kHeads, kRank});
    DecodeAttention attention = batch.attention(o_latent);
    attention.scale = 0.05f;
    kernels->mla_decode(attention);
    for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t i = 0; i < kValue; ++i) {
            const float* o = o_latent.view().as<float>() + head * kRank;
            const float value = std::inner_product(o, o + kRank, matrix(head, kNope + i), 0.0f);
            EXPECT_NEAR(value, expanded.view().row<float>(kKeys - 1)[head * kValue + i], 2e-5f);
        }
}

// The rows of a call may be the last ones of a batch.
TEST(MlaDecode, RowsFromTheMiddleOfABatch) {
    const Batch batch(kSmall, {{70, 1}, {3, 2}}, DType::f32);
    const OwnedTensor expected = batch.run(1);
    const Tensor& o = batch.out;
    const OwnedTensor result = zeros({o.dim(0), o.dim(1), o.dim(2)});
    std::vector<SequenceRows> moved = batch.sequences;
    for (SequenceRows& rows : moved) rows.first_row += 40;
    DecodeAttention attention = batch.attention(result);
    attention.sequences = moved;
    attention.first_row = 40;
    make_cpu_kernels(1)->mla_decode(attention);
    EXPECT_EQ(std::memcmp(result.view().data(), expected.view().data(),
                          static_cast<size_t>(o.count()) * sizeof(float)),
              0);
}

TEST(MlaDecode, NoSequences) {
    const Batch batch(kSmall, {}, DType::f32);
    EXPECT_EQ(batch.run(2).view().rows(), 0);
}

}  // namespace
}  // namespace ferry
