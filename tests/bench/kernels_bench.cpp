// Linear layers and light kernels (measure.h says what is reported). Attention
// has its own file.
#include "tests/bench/measure.h"

namespace ferry {
namespace {

// Arguments: rows per group, groups, out, in, dtype, threads. Weights come from
// memory: enough copies of them are used in turn.
void grouped_gemm(benchmark::State& state) {
    const int64_t rows = state.range(0), groups = state.range(1);
    const WeightSpec spec{.dtype = static_cast<DType>(state.range(4)),
                          .groups = groups,
                          .out = state.range(2),
                          .in = state.range(3)};
    const auto kernels = make_cpu_kernels(static_cast<int>(state.range(5)));
    const size_t bytes = static_cast<size_t>(kernels->packed_bytes(spec));
    std::vector<Weight> weights;
    for (size_t held = 0; held < kBeyondCache && weights.size() < 64; held += bytes)
        weights.push_back(filled_weight(*kernels, spec));
    const OwnedTensor x = filled({rows * groups, spec.in}), y = filled({rows * groups, spec.out});
    std::vector<int64_t> offsets;
    for (int64_t group = 0; group <= groups; ++group) offsets.push_back(group * rows);
    size_t next = 0;
    measure(state, *kernels, static_cast<double>(bytes),
            2.0 * static_cast<double>(rows * groups * spec.out * spec.in), large_memory(),
            [&] { kernels->grouped_gemm(x, offsets, weights[next++ % weights.size()], y); });
}

void gemm_shapes(benchmark::internal::Benchmark* bench) {
    const int64_t bf16 = static_cast<int64_t>(DType::bf16), f32 = static_cast<int64_t>(DType::f32);
    const int64_t fp8 = static_cast<int64_t>(DType::fp8_e4m3);
    bench->ArgNames({"rows", "groups", "out", "in", "dtype", "threads"});
    for (int64_t threads : {1, 2}) {
        for (int64_t rows : {1, 2, 4, 8, 16, 32, 512})
            for (int64_t dtype : {bf16, fp8}) bench->Args({rows, 1, 2048, 2048, dtype, threads});
        for (int64_t rows : {1, 512}) {
            bench->Args({rows, 1, 10944, 2048, bf16, threads});
            bench->Args({rows, 1, 2048, 10944, bf16, threads});
            bench->Args({rows, 1, 2048, 2048, f32, threads});
        }
        bench->Args({1, 6, 1408, 2048, bf16, threads});    // experts of one token
        bench->Args({3, 61, 1408, 2048, bf16, threads});   // of 32 tokens
        bench->Args({48, 64, 1408, 2048, bf16, threads});  // of 512
    }
}
BENCHMARK(grouped_gemm)->Apply(gemm_shapes)->UseManualTime()->Unit(benchmark::kMicrosecond);

// Arguments: rows, heads, out, in, threads: q into latent space, and back, of
// MLA's absorbed form.
void head_gemm(benchmark::State& state) {
    const int64_t rows = state.range(0), heads = state.range(1);
    const WeightSpec spec{
        .dtype = DType::bf16, .groups = heads, .out = state.range(2), .in = state.range(3)};
    const auto kernels = make_cpu_kernels(static_cast<int>(state.range(4)));
    std::vector<Weight> weights;
    const size_t bytes = static_cast<size_t>(kernels->packed_bytes(spec));
    for (size_t held = 0; held < kBeyondCache; held += bytes)
        weights.push_back(filled_weight(*kernels, spec));
    const int64_t head_dim = spec.in + 64;
    const OwnedTensor x = filled({rows, heads * head_dim}), y = filled({rows, heads, spec.out});
    size_t next = 0;
    measure(state, *kernels, static_cast<double>(bytes),
            2.0 * static_cast<double>(rows * heads * spec.out * spec.in), large_memory(),
            [&] { kernels->head_gemm(x, head_dim, weights[next++ % weights.size()], y); });
}
BENCHMARK(head_gemm)
    ->ArgNames({"rows", "heads", "out", "in", "threads"})
    ->Args({1, 16, 512, 128, 1})
    ->Args({1, 16, 128, 512, 1})
    ->Args({32, 16, 512, 128, 1})
    ->Args({32, 16, 512, 128, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// Arguments: dtype, in. Rows are read once and panels written once: the loading
// of a checkpoint.
void pack(benchmark::State& state) {
    const WeightSpec spec{.dtype = static_cast<DType>(state.range(0)),
                          .groups = 1,
                          .out = (int64_t{8} << 20) / state.range(1) / 16 * 16,
                          .in = state.range(1)};
    const auto kernels = make_cpu_kernels(1);
    Weight weight = filled_weight(*kernels, spec);
    const Buffer plain(cpu_device(), weight.data.size_bytes());
    std::fill_n(plain.as<uint8_t>(), plain.size_bytes(), uint8_t{0x30});
    const OwnedTensor scales =
        filled({ceil_div(spec.out, kScaleBlock), ceil_div(spec.in, kScaleBlock)});
    const Tensor w(plain.data(), spec.dtype, {spec.out, spec.in});
    measure(state, *kernels, static_cast<double>(2 * plain.size_bytes()), 0, large_memory(),
            [&] { kernels->pack(weight, 0, 0, w, &scales.view()); });
}
BENCHMARK(pack)
    ->ArgNames({"dtype", "in"})
    ->ArgsProduct({{static_cast<int64_t>(DType::f32), static_cast<int64_t>(DType::bf16),
                    static_cast<int64_t>(DType::fp8_e4m3)},
                   {512, 1024, 1408, 2048, 7168}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// The rest is light: bytes moved and FLOPs (exponentials count as one) for each
// of rows * columns.
template <typename Make>
void light(benchmark::State& state, Make&& make) {
    const auto kernels = make_cpu_kernels(static_cast<int>(state.range(2)));
    const int64_t rows = state.range(0), columns = state.range(1);
    make(*kernels, rows, columns, [&](double bytes, double flops, auto&& body) {
        const double values = static_cast<double>(rows * columns);
        measure(state, *kernels, bytes * values, flops * values, large_memory(), body);
    });
}

void rms_norm(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), weight = filled({columns});
        run(8, 4, [&] { kernels.rms_norm(x, weight, 1e-6f, x); });
    });
}
void add(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), y = filled({rows, columns});
        run(12, 1, [&] { kernels.add(x, y); });
    });
}
void silu_mul(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, 2 * columns}), y = filled({rows, columns});
        run(12, 5, [&] { kernels.silu_mul(x, y); });
    });
}
void quantise_fp8(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), q = filled({rows, columns});
        const OwnedTensor scales = filled({rows, ceil_div(columns, kScaleBlock)});
        run(8, 3, [&] { kernels.quantise_fp8(x, false, q, scales); });
    });
}
void tree_sum(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor parts = filled({8, rows, columns}), y = filled({rows, columns});
        run(36, 7, [&] { kernels.tree_sum(parts, y); });
    });
}
void embed(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor table(cpu_device(), DType::bf16, {32000, columns});
        const OwnedTensor y = filled({rows, columns});
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < rows; ++i) tokens.push_back(static_cast<int32_t>(i * 7919 % 32000));
        run(6, 0, [&] { kernels.embed(tokens, table, y); });
    });
}
void log_sum_exp(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor logits = filled({rows, columns}), lse = filled({rows});
        std::vector<int32_t> argmax(static_cast<size_t>(rows));
        run(4, 3, [&] { kernels.log_sum_exp(logits, lse, argmax); });
    });
}
// Of rows of `columns` = heads * 192, the last 64 of each head turn.
void rope(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const int64_t heads = columns / 192;
        const OwnedTensor x = filled({rows, heads, 192}), table = filled({rows, 64});
        std::vector<int32_t> positions;
        for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(i));
        run(8.0 / 3, 1, [&] { kernels.rope(x, 128, positions, table, true); });
    });
}
void copy_head_columns(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const int64_t heads = columns / 192;
        const OwnedTensor x = filled({rows, heads, 192}), y = filled({rows, heads, 64});
        run(8.0 / 3, 0, [&] { kernels.copy_head_columns(x, 128, y); });
    });
}
// Latents of 576 values in pages, f32 to bf16 and back.
void write_cache(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const int64_t pages = ceil_div(rows, kPageTokens);
        const OwnedTensor latent = filled({rows, columns});
        const OwnedTensor cache = filled({pages, kPageTokens, columns}, DType::bf16);
        std::vector<int64_t> slots;
        for (int64_t i = 0; i < rows; ++i) slots.push_back(i);
        run(6, 0, [&] { kernels.write_cache(latent, slots, cache); });
    });
}
void read_cache(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const int64_t pages = ceil_div(rows, kPageTokens);
        const OwnedTensor latent = filled({rows, columns});
        const OwnedTensor cache = filled({pages, kPageTokens, columns}, DType::bf16);
        std::vector<int32_t> order;
        for (int64_t i = pages; i-- > 0;) order.push_back(static_cast<int32_t>(i));
        run(6, 0, [&] { kernels.read_cache(cache, order, 0, latent); });
    });
}
// `columns`: experts, in 8 groups of which 4 are kept, top-6.
void gate(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor scores = filled({rows, columns}), bias = filled({columns});
        const OwnedTensor experts(cpu_device(), DType::i32, {rows, 6});
        const OwnedTensor weights = filled({rows, 6});
        const GateParams params{.score_func = ScoreFunc::sigmoid,
                                .topk = 6,
                                .num_groups = 8,
                                .num_kept_groups = 4,
                                .normalise = true,
                                .scaling_factor = 2.5f};
        run(4, 4, [&] { kernels.gate(scores, &bias.view(), params, experts, weights); });
    });
}
void light_shapes(benchmark::internal::Benchmark* bench) {
    bench->ArgNames({"rows", "columns", "threads"})->UseManualTime();
    for (int64_t threads : {1, 2})
        for (int64_t rows : {1, 32, 512}) bench->Args({rows, 2048, threads});
}
BENCHMARK(rms_norm)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(add)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(silu_mul)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(quantise_fp8)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(tree_sum)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(embed)->Apply(light_shapes)->Unit(benchmark::kMicrosecond);
void columns_of(benchmark::internal::Benchmark* bench, int64_t columns) {
    bench->ArgNames({"rows", "columns", "threads"})->UseManualTime();
    for (int64_t threads : {1, 2})
        for (int64_t rows : {1, 32, 512}) bench->Args({rows, columns, threads});
}
void head_shapes(benchmark::internal::Benchmark* bench) {
    columns_of(bench, 16 * 192);
}
void latent_shapes(benchmark::internal::Benchmark* bench) {
    columns_of(bench, 576);
}
void gate_shapes(benchmark::internal::Benchmark* bench) {
    columns_of(bench, 64);
}
BENCHMARK(rope)->Apply(head_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(copy_head_columns)->Apply(head_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(write_cache)->Apply(latent_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(read_cache)->Apply(latent_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(gate)->Apply(gate_shapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(log_sum_exp)
    ->ArgNames({"rows", "columns", "threads"})
    ->Args({1, 32000, 1})
    ->Args({32, 32000, 1})
    ->Args({32, 32000, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ferry

BENCHMARK_MAIN();
