// Linear layers in the shapes of configs/models/bench-8.yaml against the bounds that matter: a read
// loop over the same bytes for decode, OpenBLAS sgemm on the same shape for prefill (when it was
// found; Ferry itself never links it). All take turns, the best of each counts (rates.h).
//   linear_compare [threads] [seconds per line] [only lines that contain this] [bf16] [compressed]
//   [avx2] [amx] [int8]
// bf16: rows that bf16 weights multiply are rounded (numerics.bf16_activations); compressed: bf16
// weights are held in 12.25 bits (engine.compress_weights); avx2: without AVX-512; amx: sums as
// AMX has them (numerics.bf16_activations: amx); int8: rows of int4 weights are rounded to int8
// (numerics.int8_activations).
#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/random.h"
#include "layers/cpu/rates.h"
#include "layers/cpu/vector_targets.h"
#include "layers/kernels.h"
//
#include <hwy/highway.h>
#ifdef FERRY_BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace ferry {
namespace {

struct Case {
    const char* name;
    DType dtype;
    int64_t rows;  // per group
    int64_t groups, out, in;
    int times = 0;  // in a prefill of 512 tokens with bench-8

    bool is_prefill() const { return rows > 32; }
};

constexpr Case kCases[] = {
    {"decode q_a", DType::bf16, 1, 1, 768, 2048},
    {"decode kv_a", DType::bf16, 1, 1, 576, 2048},
    {"decode wo", DType::bf16, 1, 1, 2048, 2048},
    {"decode dense w1", DType::bf16, 1, 1, 10944, 2048},
    {"decode dense w2", DType::bf16, 1, 1, 2048, 10944},
    {"decode experts w1", DType::bf16, 1, 6, 1408, 2048},
    {"decode experts w2", DType::bf16, 1, 6, 2048, 1408},
    {"decode head", DType::bf16, 1, 1, 32000, 2048},
    {"decode f32", DType::f32, 1, 1, 2048, 2048},
    {"decode fp8", DType::fp8_e4m3, 1, 1, 2048, 2048},
    {"decode 2 rows", DType::bf16, 2, 1, 2048, 2048},
    {"decode 3 rows", DType::bf16, 3, 1, 2048, 2048},
    {"decode 4 rows", DType::bf16, 4, 1, 2048, 2048},
    {"decode 5 rows", DType::bf16, 5, 1, 2048, 2048},
    {"decode 6 rows", DType::bf16, 6, 1, 2048, 2048},
    {"decode 8 rows", DType::bf16, 8, 1, 2048, 2048},
    {"decode 12 rows", DType::bf16, 12, 1, 2048, 2048},
    {"decode 16 rows", DType::bf16, 16, 1, 2048, 2048},
    {"decode 32 rows", DType::bf16, 32, 1, 2048, 2048},
    {"decode fp8 2 rows", DType::fp8_e4m3, 2, 1, 2048, 2048},
    {"decode fp8 4 rows", DType::fp8_e4m3, 4, 1, 2048, 2048},
    {"decode fp8 8 rows", DType::fp8_e4m3, 8, 1, 2048, 2048},
    {"decode fp8 16 rows", DType::fp8_e4m3, 16, 1, 2048, 2048},
    {"decode fp8 32 rows", DType::fp8_e4m3, 32, 1, 2048, 2048},
    {"decode int4", DType::int4x2, 1, 1, 2048, 2048},
    {"decode int4 2 rows", DType::int4x2, 2, 1, 2048, 2048},
    {"decode int4 4 rows", DType::int4x2, 4, 1, 2048, 2048},
    {"decode int4 8 rows", DType::int4x2, 8, 1, 2048, 2048},
    {"decode int4 16 rows", DType::int4x2, 16, 1, 2048, 2048},
    {"decode int4 32 rows", DType::int4x2, 32, 1, 2048, 2048},
    {"decode int4 experts w1", DType::int4x2, 1, 6, 1408, 2048},
    {"decode int4 experts w2", DType::int4x2, 1, 6, 2048, 1408},
    {"experts 3 rows", DType::bf16, 3, 61, 1408, 2048},
    {"experts w2 3 rows", DType::bf16, 3, 61, 2048, 1408},
    {"experts 5 rows", DType::bf16, 5, 32, 1408, 2048},
    {"prefill q_a", DType::bf16, 512, 1, 768, 2048, 8},
    {"prefill wo", DType::bf16, 512, 1, 2048, 2048, 8},
    {"prefill dense w1", DType::bf16, 512, 1, 10944, 2048, 2},
    {"prefill dense w2", DType::bf16, 512, 1, 2048, 10944},
    {"prefill q_b", DType::bf16, 512, 1, 3072, 768, 8},
    {"prefill kv_a", DType::bf16, 512, 1, 576, 2048, 8},
    {"prefill kv_b", DType::bf16, 512, 1, 2048, 512, 16},
    {"prefill shared w1", DType::bf16, 512, 1, 2816, 2048, 14},
    {"prefill w2 slice", DType::bf16, 512, 1, 2048, 1376, 8},
    {"prefill shared slice", DType::bf16, 512, 1, 2048, 352, 56},
    {"prefill f32", DType::f32, 512, 1, 2048, 2048},
    {"prefill fp8", DType::fp8_e4m3, 512, 1, 2048, 2048},
    {"prefill int4", DType::int4x2, 512, 1, 2048, 2048},
    {"prefill experts w1", DType::bf16, 48, 64, 1408, 2048, 14},
    {"prefill experts w2", DType::bf16, 48, 64, 2048, 1408, 7},
};

Weight filled_weight(Kernels& kernels, const WeightSpec& spec) {
    Weight weight = kernels.make_weight(spec);
    uint8_t* bytes = weight.data.as<uint8_t>();
    for (size_t i = 0; i < weight.data.size_bytes(); ++i)
        bytes[i] = static_cast<uint8_t>(8 + i * 37 % 53);
    std::fill_n(weight.scales.as<float>(), weight.scales.size_bytes() / 4, 1e-3f);
    return weight;
}

OwnedTensor filled(int64_t rows, int64_t columns) {
    OwnedTensor tensor(cpu_device(), DType::f32, {rows, columns});
    Random numbers(1);
    for (int64_t i = 0; i < rows * columns; ++i)
        tensor.view().as<float>()[i] = numbers.next_normal();
    return tensor;
}

// Seconds of sgemm of every group (on one matrix: it may stay in the cache), 0 without OpenBLAS.
double sgemm_s([[maybe_unused]] const BenchClock& clock, [[maybe_unused]] int64_t groups,
               [[maybe_unused]] const Tensor& x, [[maybe_unused]] const Tensor& w,
               [[maybe_unused]] const Tensor& y) {
#ifdef FERRY_BENCH_OPENBLAS
    const int64_t rows = x.rows() / groups;
    const int out = static_cast<int>(w.rows()), in = static_cast<int>(x.dim(1));
    return clock.seconds([&] {
        for (int64_t group = 0; group < groups; ++group)
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), out, in,
                        1.0f, x.row<float>(group * rows), in, w.as<float>(), in, 0.0f,
                        y.row<float>(group * rows), out);
    });
#else
    return 0;
#endif
}

struct Total {
    double kernel_s = 0, sgemm_s = 0, flops = 0;
};

void compare(const Case& c, Kernels& kernels, double budget_s, Total& total) {
    constexpr size_t kBeyondCache = size_t{160} << 20;
    const WeightSpec spec{.dtype = c.dtype, .groups = c.groups, .out = c.out, .in = c.in};
    // Decode finds its weights in memory, not in the cache: one pass uses enough copies of them.
    const size_t bytes = static_cast<size_t>(kernels.packed_bytes(spec));
    const size_t copies = c.is_prefill() ? 1 : (kBeyondCache + bytes - 1) / bytes;
    std::vector<Weight> weights;
    for (size_t copy = 0; copy < copies; ++copy) weights.push_back(filled_weight(kernels, spec));
    Buffer memory(cpu_device(), copies * bytes);
    std::fill_n(memory.as<uint8_t>(), memory.size_bytes(), uint8_t{1});

    const int64_t rows = c.rows * c.groups;
    const OwnedTensor x = filled(rows, c.in), y = filled(rows, c.out);
    const bool has_sgemm = c.is_prefill();
    const OwnedTensor plain = filled(has_sgemm ? c.out : 1, c.in);
    std::vector<int64_t> offsets;
    for (int64_t group = 0; group <= c.groups; ++group) offsets.push_back(group * c.rows);

    Rates rates;
    double best_sgemm_s = 1e30;
    const BenchClock clock(kernels.threads());
    const auto begin = std::chrono::steady_clock::now();
    for (int round = 0;; ++round) {
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
        if (round >= 3 && spent.count() > budget_s) break;
        take_turn(kernels.threads(), memory.data(), memory.size_bytes(), rates, [&] {
            for (const Weight& weight : weights) kernels.grouped_gemm(x, offsets, weight, y);
        });
        if (has_sgemm) best_sgemm_s = std::min(best_sgemm_s, sgemm_s(clock, c.groups, x, plain, y));
    }
    const double total_bytes = static_cast<double>(bytes * copies);
    const double flops = 2.0 * static_cast<double>(copies) * static_cast<double>(rows) *
                         static_cast<double>(c.out * c.in);
    fmt::print("{:20} {:8} {:3} x {:2} [{:5}, {:5}] {:9.1f} us {:6.1f} GFLOP/s {:4.0f}% of peak",
               c.name, to_string(c.dtype), c.rows, c.groups, c.out, c.in,
               1e6 * rates.kernel_s / static_cast<double>(copies), flops / rates.kernel_s * 1e-9,
               100 * flops / rates.kernel_s / rates.peak_flops_per_s);
    if (!c.is_prefill())
        fmt::print(" {:6.1f} GB/s {:4.0f}% of read loop", total_bytes / rates.kernel_s * 1e-9,
                   100 * total_bytes / rates.kernel_s / rates.read_bytes_per_s);
    fmt::print(" {:4.0f}% of the bound", 100 * rates.bound_s(total_bytes, flops) / rates.kernel_s);
    if (has_sgemm && best_sgemm_s > 0)
        fmt::print(" {:4.0f}% of sgemm ({:.1f})", 100 * best_sgemm_s / rates.kernel_s,
                   flops / best_sgemm_s * 1e-9);
    fmt::print("\n");
    std::fflush(stdout);
    total.kernel_s += c.times * rates.kernel_s;
    total.sgemm_s += c.times * best_sgemm_s;
    total.flops += c.times * flops;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::stoi(argv[1]) : 2;
    const double budget_s = argc > 2 ? std::stod(argv[2]) : 1.0;
    const std::string only = argc > 3 ? argv[3] : "";
#ifdef FERRY_BENCH_OPENBLAS
    openblas_set_num_threads(threads);
#endif
    const auto has = [&](std::string_view word) {
        return std::find(argv + std::min(argc, 4), argv + argc, word) != argv + argc;
    };
    if (has("avx2")) {
        hwy::SetSupportedTargetsForTest(HWY_AVX2);
        hwy::GetChosenTarget().Update(HWY_AVX2);
    }
    const auto kernels =
        ferry::make_cpu_kernels(threads, {.bf16_activations = has("bf16") || has("amx"),
                                          .amx_sums = has("amx"),
                                          .int8_activations = has("int8"),
                                          .compress_weights = has("compressed")});
    ferry::Total total;
    for (const ferry::Case& c : ferry::kCases)
        if (std::string(c.name).find(only) != std::string::npos)
            ferry::compare(c, *kernels, budget_s, total);
    if (total.kernel_s > 0)
        fmt::print("all products of a prefill of 512 tokens: {:.1f} GFLOP/s, {:.0f}% of sgemm\n",
                   total.flops / total.kernel_s * 1e-9, 100 * total.sgemm_s / total.kernel_s);
}
