#include "layers/cuda/mla_plan.h"
#include "tests/layers/cuda/mla_support.h"

namespace ferry {
namespace {

struct Shape {
    int64_t heads, nope, rope, v, kv_lora;
};
constexpr Shape kSmall{.heads = 3, .nope = 24, .rope = 8, .v = 20, .kv_lora = 16};
constexpr Shape kPublished{.heads = 2, .nope = 128, .rope = 64, .v = 128, .kv_lora = 512};

double error_bound(const Shape& shape) {
    return shape.nope == kPublished.nope ? kBf16Error : kF32Error;
}

// One sequence of `positions` prompt rows, on the host and on the device.
struct Prompt {
    Prompt(const Shape& s, int64_t num_positions)
        : shape(s),
          positions(num_positions),
          q(random_tensor({positions, s.heads, s.nope + s.rope}, 1)),
          kv(random_tensor({positions, s.heads, s.nope + s.v}, 2)),
          latent(random_tensor({positions, s.kv_lora + s.rope}, 3)),
          cuda_q(q.view()),
          cuda_kv(expanded()),
          cuda_latent(latent.view()) {}

    // As the kernels want keys and values.
    CudaTensor expanded() const {
        if (kv_expansion_of(shape.nope, shape.rope, shape.v).dtype == DType::f32)
            return CudaTensor(kv.view());
        std::vector<uint16_t> rounded(static_cast<size_t>(kv.view().count()));
        std::transform(kv.view().as<float>(), kv.view().as<float>() + kv.view().count(),
                       rounded.begin(), f32_to_bf16);
        return CudaTensor(
            Tensor(rounded.data(), DType::bf16, {positions, shape.heads, shape.nope + shape.v}));
    }
    // Rows [first, first + num) as one chunk, into `out` [positions, heads, v].
    PrefillAttention chunk(const Tensor& queries, const Tensor& keys, const Tensor& latents,
                           const Tensor& out, int64_t first, int64_t num) const {
        return {.q = queries.slice_rows(first, num),
                .kv = keys.slice_rows(0, first + num),
                .rope = latents.slice_columns(shape.kv_lora, shape.rope).slice_rows(0, first + num),
                .out = out.slice_rows(first, num),
                .rows = {.first_row = 0, .num_rows = num, .first_position = first},
                .nope_dim = shape.nope,
                .rope_dim = shape.rope,
                .v_dim = shape.v,
                .scale = 0.07f};
    }
    std::vector<float> on_cpu() const {
        const OwnedTensor out = zeros({positions, shape.heads, shape.v});
        make_cpu_kernels(2)->mla_prefill(chunk(q, kv, latent, out, 0, positions));
        return values_of(out);
    }
    std::vector<float> on_cuda(int64_t chunk_rows) const {
        const CudaTensor out(DType::f32, {positions, shape.heads, shape.v});
        for (int64_t first = 0; first < positions; first += chunk_rows)
            cuda_kernels().mla_prefill(chunk(cuda_q, cuda_kv, cuda_latent, out, first,
                                             std::min(chunk_rows, positions - first)));
        return out.values();
    }
    std::vector<float> on_cuda() const { return on_cuda(positions); }

    Shape shape;
    int64_t positions;
    OwnedTensor q, kv, latent;
    CudaTensor cuda_q, cuda_kv, cuda_latent;
};

TEST(CudaMlaPrefill, AgreesWithTheCpu) {
    for (const Shape& shape : {kSmall, kPublished})
        for (int64_t positions : {1, 15, 17, 63, 64, 65, 128, 150}) {
            const Prompt prompt(shape, positions);
            EXPECT_LT(relative_error(prompt.on_cuda(), prompt.on_cpu()), error_bound(shape))
                << positions << " positions of " << shape.nope;
        }
}

TEST(CudaMlaPrefill, LongPromptsOnAGpu) {
    if (!on_gpu()) GTEST_SKIP() << "too long for the emulation";
    Shape shape = kPublished;
    shape.heads = 8;
    const Prompt prompt(shape, 3001);
    const std::vector<float> whole = prompt.on_cuda();
    EXPECT_LT(relative_error(whole, prompt.on_cpu()), kBf16Error);
    for (int64_t rows : {3001, 512, 777}) expect_same_bits(prompt.on_cuda(rows), whole);
}

TEST(CudaMlaPrefill, ChunksDoNotChangeBits) {
    for (const Shape& shape : {kSmall, kPublished}) {
        const Prompt prompt(shape, 200);
        const std::vector<float> whole = prompt.on_cuda();
        for (int64_t rows : {200, 7, 64, 130}) {
            if (rows == 7 && shape.nope == kPublished.nope && !on_gpu()) continue;  // half a minute
            SCOPED_TRACE(rows);
            expect_same_bits(prompt.on_cuda(rows), whole);
        }
    }
}

// More tiles of rows than multiprocessors: blocks that take several in turn, of an odd and an even
// number.
TEST(CudaMlaPrefill, TilesInTurnOnHopper) {
    CudaDevice& gpu = cuda_device(0);
    if (gpu.info().capability != 90) GTEST_SKIP() << "not a Hopper";
    for (int64_t positions : {200, 300}) {
        const Prompt prompt(kPublished, positions);
        const std::vector<float> expected = prompt.on_cuda();
        std::vector<uint16_t> rounded;
        for (int64_t row = 0; row < positions; ++row)
            std::transform(
                prompt.latent.view().row<float>(row) + kPublished.kv_lora,
                prompt.latent.view().row<float>(row) + kPublished.kv_lora + kPublished.rope,
                std::back_inserter(rounded), f32_to_bf16);
        const CudaTensor keys(Tensor(rounded.data(), DType::bf16, {positions, kPublished.rope}));
        for (int multiprocessors : {1, 2, 3}) {
            const CudaTensor out(DType::f32, {positions, kPublished.heads, kPublished.v});
            launch_prefill_hopper({.q = prompt.cuda_q.view().as<float>(),
                                   .out = out.view().as<float>(),
                                   .kv = prompt.cuda_kv.view().as<uint16_t>(),
                                   .rope = keys.view().as<uint16_t>(),
                                   .q_stride = prompt.cuda_q.view().row_stride(),
                                   .out_stride = out.view().row_stride(),
                                   .kv_stride = prompt.cuda_kv.view().row_stride(),
                                   .rope_stride = kPublished.rope,
                                   .num_rows = static_cast<int>(positions),
                                   .scale_log2 = 0.07f * kLog2E,
                                   .heads = static_cast<int>(kPublished.heads)},
                                  multiprocessors, gpu.stream());
            SCOPED_TRACE(multiprocessors);
            expect_same_bits(out.values(), expected);
        }
    }
}

// The f32 kernel does not touch later keys, not even NaNs in them. On tensor cores they are
// multiplied by zero, so they must be finite.
TEST(CudaMlaPrefill, LaterKeysTakeNoPart) {
    for (const Shape& shape : {kSmall, kPublished}) {
        Prompt prompt(shape, 100);
        const std::vector<float> clean = prompt.on_cuda();
        const float later = shape.nope == kPublished.nope ? 1e4f : std::nanf("");
        for (int64_t i = 0; i < prompt.kv.view().row_size(); ++i)
            prompt.kv.view().row<float>(70)[i] = later;
        prompt.cuda_kv = prompt.expanded();
        const std::vector<float> result = prompt.on_cuda();
        const auto unchanged = static_cast<std::ptrdiff_t>(70 * shape.heads * shape.v);
        expect_same_bits({result.begin(), result.begin() + unchanged},
                         {clean.begin(), clean.begin() + unchanged});
        for (size_t i = static_cast<size_t>(unchanged); i < result.size(); ++i)
            ASSERT_NE(result[i], clean[i]) << i;
    }
}

// Heads as a range of columns of wider tensors, rows in the middle of a batch.
TEST(CudaMlaPrefill, StridedViewsInABatch) {
    for (const Shape& shape : {kSmall, kPublished}) {
        const Prompt prompt(shape, 40);
        const int64_t qk = shape.nope + shape.rope, heads = shape.heads;
        const OwnedTensor wide_q = random_tensor({50, heads + 2, qk}, 4);
        const auto inner = [&](const Tensor& x, int64_t dim) {
            return x.reshape({50, (heads + 2) * dim})
                .slice_columns(dim, heads * dim)
                .reshape({50, heads, dim});
        };
        for (int64_t row = 0; row < 40; ++row)
            std::memcpy(inner(wide_q, qk).row<float>(6 + row), prompt.q.view().row<float>(row),
                        static_cast<size_t>(heads * qk) * sizeof(float));
        const CudaTensor q(wide_q.view()), out(DType::f32, {50, heads + 2, shape.v});
        PrefillAttention attention =
            prompt.chunk(prompt.cuda_q, prompt.cuda_kv, prompt.cuda_latent, prompt.cuda_q, 0, 40);
        attention.q = inner(q, qk);
        attention.out = inner(out, shape.v);
        attention.rows.first_row = 6;
        cuda_kernels().mla_prefill(attention);

        const std::vector<float> got = out.values(), expected = prompt.on_cuda();
        const int64_t row_size = (heads + 2) * shape.v;
        for (int64_t row = 0; row < 50; ++row)
            for (int64_t i = 0; i < row_size; ++i) {
                const float value = got[static_cast<size_t>(row * row_size + i)];
                const bool written = row >= 6 && row < 46 && i >= shape.v && i < row_size - shape.v;
                ASSERT_EQ(std::isnan(value), !written) << row << " " << i;
                if (!written) continue;
                const int64_t at = (row - 6) * heads * shape.v + i - shape.v;
                ASSERT_EQ(value, expected[static_cast<size_t>(at)]) << row << " " << i;
            }
    }
}

TEST(CudaMlaPrefill, ZeroRows) {
    for (const Shape& shape : {kSmall, kPublished}) {
        const Prompt prompt(shape, 4);
        const CudaTensor out(DType::f32, {4, shape.heads, shape.v});
        cuda_kernels().mla_prefill(
            prompt.chunk(prompt.cuda_q, prompt.cuda_kv, prompt.cuda_latent, out, 4, 0));
        for (float value : out.values()) ASSERT_TRUE(std::isnan(value));
    }
}

}  // namespace
}  // namespace ferry
