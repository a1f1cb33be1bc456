// MLA attention in the shape of configs/models/bench-8.yaml (16 heads, kv_lora
// 512, 128/64/128); measure.h says what is reported. Bytes: the latents of
// decode, the keys, values and queries of prefill.
#include <vector>

#include "tests/bench/measure.h"

namespace ferry {
namespace {

// Arguments: context, sequences, heads, threads, 1 for a bf16 cache, 1 for factors in bf16.
void decode(benchmark::State& state) {
    constexpr int64_t kRank = 512, kRope = 64;
    const int64_t context = state.range(0), num_sequences = state.range(1), heads = state.range(2);
    auto kernels = make_cpu_kernels(static_cast<int>(state.range(3)),
                                    {.bf16_activations = state.range(5) != 0});
    const int64_t pages = context / kPageTokens;
    const OwnedTensor q_latent = filled({num_sequences, heads, kRank});
    const OwnedTensor q_rope = filled({num_sequences, heads, kRope});
    const OwnedTensor out = filled({num_sequences, heads, kRank});
    const OwnedTensor cache = filled({num_sequences * pages, kPageTokens, kRank + kRope},
                                     state.range(4) ? DType::bf16 : DType::f32);
    std::vector<int32_t> order(static_cast<size_t>(num_sequences * pages));
    for (size_t i = 0; i < order.size(); ++i)  // pages of a sequence are not neighbours
        order[i] = static_cast<int32_t>((i * 7919) % order.size());
    std::vector<SequenceRows> sequences;
    for (int64_t i = 0; i < num_sequences; ++i)
        sequences.push_back({.first_row = i,
                             .num_rows = 1,
                             .first_position = context - 1,
                             .pages = std::span(order).subspan(static_cast<size_t>(i * pages),
                                                               static_cast<size_t>(pages))});
    const double flops =
        2.0 * static_cast<double>(num_sequences * context * heads * (2 * kRank + kRope));
    const double bytes = static_cast<double>(cache.view().count()) * (state.range(4) ? 2 : 4);
    measure(state, *kernels, bytes, flops, large_memory(), [&] {
        kernels->mla_decode({.q_latent = q_latent,
                             .q_rope = q_rope,
                             .cache = cache,
                             .out = out,
                             .sequences = sequences,
                             .scale = 0.07f});
    });
}
BENCHMARK(decode)
    ->ArgNames({"context", "sequences", "heads", "threads", "bf16", "factors"})
    ->Args({8192, 1, 16, 1, 1, 0})
    ->Args({8192, 1, 16, 1, 0, 0})
    ->Args({8192, 1, 16, 2, 1, 0})
    ->Args({512, 32, 16, 1, 1, 0})
    ->Args({100, 32, 16, 1, 1, 0})
    ->Args({8192, 1, 128, 1, 1, 0})
    ->Args({8192, 1, 128, 2, 1, 0})
    ->Args({8192, 1, 16, 2, 0, 1})
    ->Args({8192, 1, 16, 2, 1, 1})
    ->Args({8192, 1, 128, 2, 1, 1})
    ->Args({512, 32, 16, 1, 0, 1})
    ->Args({512, 32, 16, 1, 1, 1})
    ->Args({512, 32, 16, 1, 0, 1})
    ->Args({512, 32, 16, 1, 1, 1})
    ->Args({512, 1, 16, 1, 1, 1})
    ->Args({512, 1, 16, 2, 1, 1})
    ->Args({512, 1, 16, 2, 0, 1})
    ->Args({512, 1, 128, 2, 1, 1})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// Arguments: first position, rows, heads, threads, 1 for factors in bf16.
void prefill(benchmark::State& state) {
    constexpr int64_t kNope = 128, kRope = 64, kValue = 128, kRank = 512;
    const int64_t first = state.range(0), rows = state.range(1), heads = state.range(2);
    auto kernels = make_cpu_kernels(static_cast<int>(state.range(3)),
                                    {.bf16_activations = state.range(4) != 0});
    const int64_t positions = first + rows;
    const OwnedTensor q = filled({rows, heads, kNope + kRope});
    const OwnedTensor kv = filled({positions, heads, kNope + kValue});
    const OwnedTensor latent = filled({positions, kRank + kRope});
    const OwnedTensor out = filled({rows, heads, kValue});
    // Row i of the prompt sees i + 1 keys.
    const double keys = 0.5 * static_cast<double>(rows) * static_cast<double>(2 * first + rows + 1);
    const double bytes = 4.0 * static_cast<double>(positions * (heads * (kNope + kValue) + kRope) +
                                                   rows * heads * (kNope + kRope + kValue));
    measure(state, *kernels, bytes,
            2 * keys * static_cast<double>(heads * (kNope + kRope + kValue)), large_memory(), [&] {
                kernels->mla_prefill(
                    {.q = q,
                     .kv = kv,
                     .rope = latent.view().slice_columns(kRank, kRope),
                     .out = out,
                     .rows = {.first_row = 0, .num_rows = rows, .first_position = first},
                     .nope_dim = kNope,
                     .rope_dim = kRope,
                     .v_dim = kValue,
                     .scale = 0.07f});
            });
}
BENCHMARK(prefill)
    ->ArgNames({"first", "rows", "heads", "threads", "factors"})
    ->Args({0, 4096, 8, 1, 0})
    ->Args({0, 4096, 8, 2, 0})
    ->Args({0, 512, 8, 1, 0})
    ->Args({3584, 512, 8, 1, 0})
    ->Args({4000, 16, 8, 1, 0})
    ->Args({4000, 1, 8, 1, 0})
    ->Args({0, 4096, 8, 2, 1})
    ->Args({0, 512, 8, 1, 1})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ferry

BENCHMARK_MAIN();
