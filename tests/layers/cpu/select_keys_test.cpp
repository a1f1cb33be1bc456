#include <limits>

#include "tests/layers/cpu/select_support.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

Selecting::Rows choose(const Selecting& call, std::span<const SequenceRows> sequences, int threads,
                       int64_t rows_at_once, bool rounded = false) {
    const OwnedTensor scores = zeros({rows_at_once, call.positions});
    const OwnedTensor chosen(cpu_device(), DType::i32, {call.num_rows, call.topk});
    KeySelection selection = call.selection();
    selection.chosen = chosen;
    selection.scores = scores;
    selection.sequences = sequences;
    make_cpu_kernels(threads, {.bf16_activations = rounded})->select_keys(selection);
    return call.rows_of(chosen, sequences);
}
std::vector<int32_t> only_row(const Selecting& call) {
    return choose(call, call.sequences, 2, 1).at(0);
}

class SelectKeysBits : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(ExactAndRounded, SelectKeysBits, ::testing::Bool());

TEST_P(SelectKeysBits, AreThoseOfTheReference) {
    for (const auto& [heads, dim] : {std::pair(8, 24), {64, 128}, {20, 33}, {1, 2}})
        for (DType dtype : {DType::f32, DType::bf16}) {
            const Selecting call(heads, dim, 100, {{0, 1}, {99, 2}, {540, 3}, {130, 1}}, dtype);
            const Selecting::Rows expected = call.reference(GetParam());
            for_each_vector_target([&] {
                for (int threads : {1, 2, 5})
                    for (int64_t at_once : {1, 2, 100})
                        EXPECT_EQ(choose(call, call.sequences, threads, at_once, GetParam()),
                                  expected)
                            << heads << " heads of " << dim << ", " << to_string(dtype);
            });
        }
}

// Every score is 0, as all of a key's products are negative: the first keys are chosen.
TEST(SelectKeys, OfEqualScoresTheFirst) {
    Selecting call(4, 16, 50, {{200, 1}}, DType::f32);
    std::fill_n(call.q.view().as<float>(), call.q.view().count(), 1.0f);
    std::fill_n(call.keys.view().as<float>(), call.keys.view().count(), -1.0f);
    std::vector<int32_t> expected(50);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(only_row(call), expected);
    const auto set = [&](int64_t position, float weight) {
        const int64_t page = call.order.at(static_cast<size_t>(position / kPageTokens));
        const int64_t row = page * kPageTokens + position % kPageTokens;
        std::fill_n(call.keys.view().as<float>() + row * 16, 16, 1.0f);
        std::fill_n(call.weights.view().as<float>(), 4, weight);
    };
    set(190, 1);  // scores more than 0
    expected.back() = 190;
    EXPECT_EQ(only_row(call), expected);
    set(190, -1);  // less
    set(3, -1);
    expected.back() = 49;
    expected.push_back(50);
    expected.erase(expected.begin() + 3);
    EXPECT_EQ(only_row(call), expected);
}

// What is no number has a place in the order as well.
TEST(SelectKeys, ScoresThatAreNoNumbers) {
    Selecting call(4, 16, 50, {{200, 1}}, DType::f32);
    std::fill_n(call.weights.view().as<float>(), 2, std::numeric_limits<float>::quiet_NaN());
    std::vector<int32_t> first(50);
    std::iota(first.begin(), first.end(), 0);
    EXPECT_EQ(only_row(call), first);
}

TEST(SelectKeys, AMaskHasTheSameKeys) {
    const Selecting call(8, 32, 64, {{300, 2}, {70, 1}, {20, 3}}, DType::bf16);
    const Selecting::Rows expected = choose(call, call.sequences, 1, 6);
    const int64_t num_words = 2 * ceil_div(call.positions, kPageTokens);
    const OwnedTensor scores = zeros({2, call.positions});
    const OwnedTensor mask(cpu_device(), DType::i32, {call.num_rows, num_words});
    std::fill_n(mask.view().as<uint32_t>(), mask.view().count(), ~0u);
    KeySelection selection = call.selection();
    selection.mask = mask;
    selection.scores = scores;
    make_cpu_kernels(2)->select_keys(selection);
    size_t row = 0;
    for (const SequenceRows& rows : call.sequences)
        for (int64_t i = 0; i < rows.num_rows; ++i, ++row) {
            const auto* words = mask.view().row<uint32_t>(rows.first_row + i);
            std::vector<int32_t> keys;
            for (int32_t key = 0; key < ceil_div(rows.first_position + i + 1, 64) * 64; ++key)
                if (words[key / 32] >> key % 32 & 1) keys.push_back(key);
            EXPECT_EQ(keys, expected.at(row));
        }
}

TEST(SelectKeys, OtherSequencesDoNotChangeBits) {
    const Selecting call(8, 32, 64, {{600, 2}, {70, 1}, {64, 3}}, DType::bf16);
    const Selecting::Rows together = choose(call, call.sequences, 2, 4);
    for (const SequenceRows& rows : call.sequences) {
        const Selecting::Rows alone = choose(call, {&rows, 1}, 1, 1);
        for (int64_t i = 0; i < rows.num_rows; ++i)
            EXPECT_EQ(alone.at(static_cast<size_t>(i)),
                      together.at(static_cast<size_t>(rows.first_row + i)));
    }
}

}  // namespace
}  // namespace ferry
