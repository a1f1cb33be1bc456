#include <numeric>

#include "layers/cuda/mla_launch.h"
#include "tests/layers/cuda/mla_support.h"

namespace ferry {
namespace {

struct Shape {
    int64_t heads, kv_lora, rope;
};
constexpr Shape kSmall{.heads = 3, .kv_lora = 24, .rope = 8};
constexpr float kScale = 1.0f / 24;  // scores of order 1 at 512 + 64

// Sequences given by (first position, rows), their pages dealt out in a shuffled order; on the host
// and on the device.
struct Batch {
    using Sequence = std::pair<int64_t, int64_t>;

    Batch(const Shape& shape, const std::vector<Sequence>& list, DType dtype)
        : num_rows(0),
          order(shuffled_pages(list)),
          q_latent(random_tensor({count_rows(list), shape.heads, shape.kv_lora}, 10)),
          q_rope(random_tensor({count_rows(list), shape.heads, shape.rope}, 11)),
          cache(random_tensor({std::max<int64_t>(1, static_cast<int64_t>(order.size())),
                               kPageTokens, shape.kv_lora + shape.rope},
                              12, dtype)),
          cuda_q_latent(q_latent.view()),
          cuda_q_rope(q_rope.view()),
          cuda_cache(cache.view()) {
        int64_t page = 0;
        for (const auto& [position, rows] : list) {
            const int64_t used = ceil_div(position + rows, kPageTokens);
            sequences.push_back({.first_row = num_rows,
                                 .num_rows = rows,
                                 .first_position = position,
                                 .pages = std::span(order).subspan(static_cast<size_t>(page),
                                                                   static_cast<size_t>(used))});
            num_rows += rows;
            page += used;
        }
    }

    static int64_t count_rows(const std::vector<Sequence>& list) {
        int64_t rows = 0;
        for (const Sequence& sequence : list) rows += sequence.second;
        return rows;
    }
    static std::vector<int32_t> shuffled_pages(const std::vector<Sequence>& list) {
        int64_t pages = 0;
        for (const auto& [position, rows] : list) pages += ceil_div(position + rows, kPageTokens);
        std::vector<int32_t> order(static_cast<size_t>(pages));
        std::iota(order.begin(), order.end(), 0);
        Random random(1);
        for (size_t i = order.size(); i > 1; --i)
            std::swap(order[i - 1], order[random.next_u32() % i]);
        return order;
    }

    std::vector<float> on_cpu(const Tensor& chosen = {}) const {
        const OwnedTensor out = zeros({num_rows, q_latent.view().dim(1), q_latent.view().dim(2)});
        make_cpu_kernels(2)->mla_decode({.q_latent = q_latent,
                                         .q_rope = q_rope,
                                         .cache = cache,
                                         .out = out,
                                         .sequences = sequences,
                                         .chosen = chosen,
                                         .scale = kScale});
        return values_of(out);
    }
    // The result is NaN where nothing is written.
    std::vector<float> on_cuda(std::span<const SequenceRows> listed) const {
        const CudaTensor out(DType::f32,
                             {num_rows, q_latent.view().dim(1), q_latent.view().dim(2)});
        run(listed, out);
        return out.values();
    }
    std::vector<float> on_cuda() const { return on_cuda(sequences); }
    void run(std::span<const SequenceRows> listed, const Tensor& out,
             const Tensor& chosen = {}) const {
        cuda_kernels().mla_decode({.q_latent = cuda_q_latent,
                                   .q_rope = cuda_q_rope,
                                   .cache = cuda_cache,
                                   .out = out,
                                   .sequences = listed,
                                   .chosen = chosen,
                                   .scale = kScale});
    }

    int64_t num_rows;
    std::vector<int32_t> order;
    OwnedTensor q_latent, q_rope, cache;
    CudaTensor cuda_q_latent, cuda_q_rope, cuda_cache;
    std::vector<SequenceRows> sequences;
};

Shape published(int64_t heads) {
    return {.heads = heads, .kv_lora = 512, .rope = 64};
}

TEST(CudaMlaDecode, TensorCoresAgreeWithTheCpu) {
    for (int64_t heads : {1, 16, 20, 33, 70, 128}) {
        const Batch batch(published(heads), {{0, 1}, {62, 1}, {63, 1}, {64, 2}, {130, 1}},
                          DType::bf16);
        EXPECT_LT(relative_error(batch.on_cuda(), batch.on_cpu()), kBf16Error) << heads;
    }
}

TEST(CudaMlaDecode, SplitsAgreeWithTheCpu) {
    for (int64_t heads : {4, 20, 40}) {
        const Batch batch(
            published(heads),
            {{kCudaDecodeSplitTokens - 1, 2}, {5, 1}, {2 * kCudaDecodeSplitTokens, 1}},
            DType::bf16);
        EXPECT_LT(relative_error(batch.on_cuda(), batch.on_cpu()), kBf16Error) << heads;
    }
}

TEST(CudaMlaDecode, LongSequencesOnAGpu) {
    if (!on_gpu()) GTEST_SKIP() << "too long for the emulation";
    const Batch batch(published(128), {{20000, 1}, {4095, 1}, {999, 3}, {9000, 2}}, DType::bf16);
    EXPECT_LT(relative_error(batch.on_cuda(), batch.on_cpu()), kBf16Error);
    const std::vector<float> first = batch.on_cuda();
    for (int i = 0; i < 20; ++i) expect_same_bits(batch.on_cuda(), first);
}

TEST(CudaMlaDecode, OtherCachesAgreeWithTheCpu) {
    for (const Shape& shape : {kSmall, Shape{.heads = 2, .kv_lora = 200, .rope = 16}})
        for (DType dtype : {DType::f32, DType::bf16}) {
            const Batch batch(shape, {{0, 1}, {63, 1}, {64, 3}, {kCudaDecodeSplitTokens, 1}},
                              dtype);
            EXPECT_LT(relative_error(batch.on_cuda(), batch.on_cpu()), kF32Error)
                << shape.kv_lora << " " << to_string(dtype);
        }
    const Batch batch(published(2), {{99, 2}}, DType::f32);
    EXPECT_LT(relative_error(batch.on_cuda(), batch.on_cpu()), kF32Error);
    // More keys than kDecodeSplits of the shortest splits have.
    const Batch longer(kSmall, {{kDecodeSplits * kCudaDecodeSplitTokens, 1}}, DType::bf16);
    EXPECT_LT(relative_error(longer.on_cuda(), longer.on_cpu()), kF32Error);
}

// Rows that have no more keys than there are to choose keep the bits that they have alone, with all
// of their keys.
TEST(CudaMlaDecode, ChosenKeysAgreeWithTheCpu) {
    for (const Shape& shape : {published(20), published(70), kSmall})
        for (DType dtype : {DType::bf16, DType::f32})
            for (const int64_t topk : {70, on_gpu() ? 2048 : 1100}) {
                if (topk > 100 && (dtype == DType::f32 || shape.heads == 70)) continue;
                const Batch batch(shape, {{topk + 50, 2}, {topk - 2, 3}, {20, 1}}, dtype);
                const OwnedTensor chosen(cpu_device(), DType::i32, {6, topk});
                for (int64_t row = 0; row < 6; ++row)  // all but the first few of the longer rows
                    std::iota(chosen.view().row<int32_t>(row),
                              chosen.view().row<int32_t>(row) + topk,
                              row < 2    ? 11
                              : row == 4 ? 1
                                         : 0);
                const CudaTensor cuda_chosen(chosen.view());
                const CudaTensor out(DType::f32, {6, shape.heads, shape.kv_lora});
                batch.run(batch.sequences, out, cuda_chosen);
                const bool rounded = dtype == DType::bf16 && shape.kv_lora == 512;
                const std::vector<float> got = out.values();
                EXPECT_LT(relative_error(got, batch.on_cpu(chosen)),
                          rounded ? kBf16Error : kF32Error)
                    << shape.heads << " heads, " << topk;
                const std::vector<float> all = batch.on_cuda();
                const int64_t row = shape.heads * shape.kv_lora;
                for (const int64_t begin : {2 * row, 5 * row})
                    expect_same_bits({got.begin() + begin, got.begin() + begin + row},
                                     {all.begin() + begin, all.begin() + begin + row});
            }
}

TEST(CudaMlaDecode, RunsHaveTheSameBits) {
    const Batch batch(published(20), {{kCudaDecodeSplitTokens + 70, 1}, {10, 1}}, DType::bf16);
    expect_same_bits(batch.on_cuda(), batch.on_cuda());
}

// Also rows of one sequence in one call and one by one.
TEST(CudaMlaDecode, OtherRowsDoNotChangeBits) {
    for (const Shape& shape : {published(5), kSmall}) {
        const Batch batch(shape, {{kCudaDecodeSplitTokens - 2, 3}, {10, 1}, {100, 2}}, DType::bf16);
        const CudaTensor alone(DType::f32, {batch.num_rows, shape.heads, shape.kv_lora});
        for (const SequenceRows& sequence : batch.sequences)
            for (int64_t i = 0; i < sequence.num_rows; ++i) {
                const SequenceRows row{.first_row = sequence.first_row + i,
                                       .num_rows = 1,
                                       .first_position = sequence.first_position + i,
                                       .pages = sequence.pages};
                batch.run(std::span(&row, 1), alone);
            }
        expect_same_bits(alone.values(), batch.on_cuda());
    }
}

TEST(CudaMlaDecode, RowsThatAreNotListedStayAsTheyAre) {
    const Batch batch(published(2), {{3, 1}, {70, 1}, {9, 1}}, DType::bf16);
    const std::vector<float> all = batch.on_cuda();
    const std::vector<float> one = batch.on_cuda(std::span(batch.sequences).subspan(1, 1));
    constexpr size_t kRow = 2 * 512;
    EXPECT_TRUE(std::isnan(one[kRow - 1]));
    EXPECT_TRUE(std::isnan(one[2 * kRow]));
    expect_same_bits({one.begin() + kRow, one.begin() + 2 * kRow},
                     {all.begin() + kRow, all.begin() + 2 * kRow});
}

// Not even infinities and NaNs in them.
TEST(CudaMlaDecode, LaterKeysAreNotTouched) {
    for (const Shape& shape : {published(3), kSmall}) {
        const Batch clean(shape, {{69, 1}}, DType::bf16);
        Batch batch(shape, {{69, 1}}, DType::bf16);
        const int64_t width = shape.kv_lora + shape.rope;
        uint16_t* page = batch.cache.view().as<uint16_t>() + batch.order[1] * kPageTokens * width;
        std::fill(page + 6 * width, page + kPageTokens * width, uint16_t{0x7fc0});
        batch.cuda_cache = CudaTensor(batch.cache.view());
        expect_same_bits(batch.on_cuda(), clean.on_cuda());
    }
}

// They fill a batch up: zeros, and nothing else changes.
TEST(CudaMlaDecode, RowsWithoutKeys) {
    for (const Shape& shape : {published(20), published(70), kSmall}) {
        const Batch batch(shape, {{-1, 1}, {kCudaDecodeSplitTokens, 1}, {-1, 1}}, DType::bf16);
        const auto row = static_cast<size_t>(shape.heads * shape.kv_lora);
        const std::vector<float> got = batch.on_cuda();
        const std::vector<float> one = batch.on_cuda(std::span(batch.sequences).subspan(1, 1));
        for (size_t i = 0; i < row; ++i) ASSERT_EQ(got[i], 0) << i;
        for (size_t i = 2 * row; i < 3 * row; ++i) ASSERT_EQ(got[i], 0) << i;
        for (size_t i = row; i < 2 * row; ++i) ASSERT_EQ(got[i], one[i]) << i;
    }
}

TEST(CudaMlaDecode, NoSequences) {
    const Batch batch(published(2), {}, DType::bf16);
    EXPECT_TRUE(batch.on_cuda().empty());
}

}  // namespace
}  // namespace ferry
