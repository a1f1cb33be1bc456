// Linear layers and light kernels: time, bytes and FLOPs, as fractions of what a read loop and
// multiply-adds reach in between (rates.h). Attention has its own file.
//   best_us, GBps, GFLOPs    of the best iteration
//   of_read, of_peak         against the machine's read bandwidth and multiply-add peak
//   of_bound                 against whichever of the two bounds is higher
#include <benchmark/benchmark.h>

#include "base/random.h"
#include "layers/cpu/rates.h"
#include "layers/kernels.h"

namespace ferry {
namespace {

constexpr size_t kBeyondCache = size_t{160} << 20;

OwnedTensor filled(std::initializer_list<int64_t> shape) {
    OwnedTensor tensor(cpu_device(), DType::f32, shape);
    Random random(1);
    for (int64_t i = 0; i < tensor.view().count(); ++i)
        tensor.view().as<float>()[i] = random.next_uniform() - 0.5f;
    return tensor;
}

// A weight whose every byte is written, with values of ordinary size in any type.
Weight filled_weight(Kernels& kernels, const WeightSpec& spec) {
    Weight weight = kernels.make_weight(spec);
    uint8_t* bytes = weight.data.as<uint8_t>();
    for (size_t i = 0; i < weight.data.size_bytes(); ++i)
        bytes[i] = static_cast<uint8_t>(8 + i * 37 % 53);
    std::fill_n(weight.scales.as<float>(), weight.scales.size_bytes() / 4, 1e-3f);
    return weight;
}

// `body` (which moves `bytes` and does `flops`) as the benchmark. `memory`: for the read loop.
template <typename Body>
void measure(benchmark::State& state, Kernels& kernels, double bytes, double flops,
             const Buffer& memory, Body&& body) {
    Rates rates;
    for (auto _ : state)
        state.SetIterationTime(
            take_turn(kernels.threads(), memory.data(), memory.size_bytes(), rates, body));
    state.counters["best_us"] = rates.kernel_s * 1e6;
    state.counters["GBps"] = bytes / rates.kernel_s * 1e-9;
    state.counters["GFLOPs"] = flops / rates.kernel_s * 1e-9;
    state.counters["of_read"] = bytes / rates.kernel_s / rates.read_bytes_per_s;
    state.counters["of_peak"] = flops / rates.kernel_s / rates.peak_flops_per_s;
    state.counters["of_bound"] = rates.bound_s(bytes, flops) / rates.kernel_s;
}

// Memory to read when a kernel works in the cache.
const Buffer& large_memory() {
    static const Buffer memory = [] {
        Buffer buffer(cpu_device(), kBeyondCache);
        std::fill_n(buffer.as<uint8_t>(), kBeyondCache, uint8_t{1});
        return buffer;
    }();
    return memory;
}

// Arguments: rows per group, groups, out, in, dtype, threads. Weights come from memory: enough
// copies of them are used in turn.
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

// Arguments: rows, heads, out, in, threads: q into latent space, and back, of MLA's absorbed form.
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

// Arguments: dtype. Rows are read once and panels written once: the loading of a checkpoint.
void pack(benchmark::State& state) {
    const WeightSpec spec{
        .dtype = static_cast<DType>(state.range(0)), .groups = 1, .out = 4096, .in = 2048};
    const auto kernels = make_cpu_kernels(1);
    Weight weight = filled_weight(*kernels, spec);
    const Buffer plain(cpu_device(), weight.data.size_bytes());
    std::fill_n(plain.as<uint8_t>(), plain.size_bytes(), uint8_t{0x30});
    const OwnedTensor scales = filled({spec.out / kScaleBlock, spec.in / kScaleBlock});
    const Tensor w(plain.data(), spec.dtype, {spec.out, spec.in});
    measure(state, *kernels, static_cast<double>(2 * plain.size_bytes()), 0, large_memory(),
            [&] { kernels->pack(weight, 0, 0, w, &scales.view()); });
}
BENCHMARK(pack)
    ->ArgName("dtype")
    ->Arg(static_cast<int64_t>(DType::f32))
    ->Arg(static_cast<int64_t>(DType::bf16))
    ->Arg(static_cast<int64_t>(DType::fp8_e4m3))
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// The rest is light: `values` are read and written, `moved` bytes for each.
template <typename Make>
void light(benchmark::State& state, Make&& make) {
    const auto kernels = make_cpu_kernels(static_cast<int>(state.range(2)));
    const int64_t rows = state.range(0), columns = state.range(1);
    make(*kernels, rows, columns, [&](double bytes, auto&& body) {
        measure(state, *kernels, bytes * static_cast<double>(rows * columns), 0, large_memory(),
                body);
    });
}

void rms_norm(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), weight = filled({columns});
        run(8, [&] { kernels.rms_norm(x, weight, 1e-6f, x); });
    });
}
void add(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), y = filled({rows, columns});
        run(12, [&] { kernels.add(x, y); });
    });
}
void silu_mul(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, 2 * columns}), y = filled({rows, columns});
        run(12, [&] { kernels.silu_mul(x, y); });
    });
}
void quantise_fp8(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor x = filled({rows, columns}), q = filled({rows, columns});
        const OwnedTensor scales = filled({rows, ceil_div(columns, kScaleBlock)});
        run(8, [&] { kernels.quantise_fp8(x, false, q, scales); });
    });
}
void tree_sum(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor parts = filled({8, rows, columns}), y = filled({rows, columns});
        run(36, [&] { kernels.tree_sum(parts, y); });
    });
}
void embed(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor table(cpu_device(), DType::bf16, {32000, columns});
        const OwnedTensor y = filled({rows, columns});
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < rows; ++i) tokens.push_back(static_cast<int32_t>(i * 7919 % 32000));
        run(6, [&] { kernels.embed(tokens, table, y); });
    });
}
void log_sum_exp(benchmark::State& state) {
    light(state, [](Kernels& kernels, int64_t rows, int64_t columns, auto&& run) {
        const OwnedTensor logits = filled({rows, columns}), lse = filled({rows});
        std::vector<int32_t> argmax(static_cast<size_t>(rows));
        run(4, [&] { kernels.log_sum_exp(logits, lse, argmax); });
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
