#include "tests/layers/cpu/select_support.h"
#include "tests/layers/cuda/mla_support.h"

namespace ferry {
namespace {

// Scores of the rows and what is chosen, of `sequences`.
struct Selected {
    Selecting::Rows chosen;
    std::vector<float> scores;  // [rows at once, positions]; NaN where nothing is written
};
Selected choose(const Selecting& call, std::span<const SequenceRows> sequences,
                int64_t rows_at_once) {
    const CudaTensor q(call.q.view()), weights(call.weights.view()), keys(call.keys.view());
    const CudaTensor scores(DType::f32, {rows_at_once, call.positions});
    const CudaTensor chosen(DType::i32, {call.num_rows, call.topk});
    cuda_kernels().select_keys({.q = q,
                                .weights = weights,
                                .keys = keys,
                                .topk = call.topk,
                                .chosen = chosen,
                                .scores = scores,
                                .sequences = sequences});
    OwnedTensor on_host(cpu_device(), DType::i32, {call.num_rows, call.topk});
    cuda_kernels().device().copy_to_host(on_host.view().data(), chosen.view().data(),
                                         static_cast<size_t>(on_host.view().count()) * 4);
    return {call.rows_of(on_host, sequences), scores.values()};
}

// What a row may choose when each score is off by at most `error`: nothing that is clearly lower
// than something that it did not choose.
void expect_highest(const Selecting& call, const Selected& got, double error) {
    size_t row = 0;
    for (const SequenceRows& rows : call.sequences)
        for (int64_t i = 0; i < rows.num_rows; ++i, ++row) {
            if (rows.first_position + i + 1 <= call.topk) continue;  // the kernel has all keys
            const std::vector<float> scores = reference_key_scores(call.selection(), rows, i);
            const std::vector<int32_t>& chosen = got.chosen.at(row);
            ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
            ASSERT_EQ(std::adjacent_find(chosen.begin(), chosen.end()), chosen.end());
            float lowest = INFINITY, highest = 0, highest_left = -INFINITY;
            for (size_t key = 0; key < scores.size(); ++key) {
                highest = std::max(highest, std::abs(scores[key]));
                if (std::binary_search(chosen.begin(), chosen.end(), static_cast<int32_t>(key)))
                    lowest = std::min(lowest, scores[key]);
                else
                    highest_left = std::max(highest_left, scores[key]);
            }
            EXPECT_LE(highest_left, lowest + 2 * error * highest)
                << "row " << row << " of " << scores.size() << " keys";
        }
}

TEST(CudaSelectKeys, TensorCoresChooseTheHighest) {
    for (int64_t heads : {16, 32, 48, 64}) {
        const Selecting call(heads, 128, 100, {{0, 1}, {99, 2}, {540, 3}, {130, 1}}, DType::bf16);
        const Selected got = choose(call, call.sequences, 100);
        expect_highest(call, got, kBf16Error);
        // The last of the sequences, whose scores are all there.
        const std::vector<float> expected =
            reference_key_scores(call.selection(), call.sequences.back(), 0);
        const auto first = got.scores.begin() + 6 * call.positions;
        EXPECT_LT(relative_error({first, first + std::ssize(expected)}, expected), kBf16Error);
        EXPECT_EQ(choose(call, call.sequences, 2).chosen, got.chosen);
    }
}

TEST(CudaSelectKeys, OtherKeysChooseTheHighest) {
    for (const auto& [heads, dim] : {std::pair(8, 24), {64, 128}, {5, 200}, {20, 128}})
        for (DType dtype : {DType::f32, DType::bf16}) {
            if (dtype == DType::bf16 && heads == 64) continue;
            const Selecting call(heads, dim, 60, {{300, 2}, {59, 2}, {10, 1}}, dtype);
            expect_highest(call, choose(call, call.sequences, 3), kF32Error);
        }
}

TEST(CudaSelectKeys, OfEqualScoresTheFirst) {
    Selecting call(4, 16, 50, {{600, 1}}, DType::f32);
    std::fill_n(call.q.view().as<float>(), call.q.view().count(), 1.0f);
    std::fill_n(call.keys.view().as<float>(), call.keys.view().count(), -1.0f);
    std::vector<int32_t> first(50);
    std::iota(first.begin(), first.end(), 0);
    EXPECT_EQ(choose(call, call.sequences, 1).chosen.at(0), first);
}

TEST(CudaSelectKeys, OtherSequencesDoNotChangeBits) {
    for (const auto& [heads, dim] : {std::pair(64, 128), {8, 24}}) {
        const Selecting call(heads, dim, 64, {{600, 2}, {70, 1}, {64, 3}}, DType::bf16);
        const Selected together = choose(call, call.sequences, 4);
        for (const SequenceRows& rows : call.sequences) {
            const Selected alone = choose(call, {&rows, 1}, 1);
            for (int64_t i = 0; i < rows.num_rows; ++i)
                EXPECT_EQ(alone.chosen.at(static_cast<size_t>(i)),
                          together.chosen.at(static_cast<size_t>(rows.first_row + i)));
        }
    }
}

TEST(CudaSelectKeys, LongSequencesOnAGpu) {
    if (!on_gpu()) GTEST_SKIP() << "too long for the emulation";
    const Selecting call(64, 128, 2048, {{30000, 1}, {2047, 2}, {9000, 3}}, DType::bf16);
    const Selected got = choose(call, call.sequences, 6);
    expect_highest(call, got, kBf16Error);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(choose(call, call.sequences, 6).chosen, got.chosen);
}

}  // namespace
}  // namespace ferry
