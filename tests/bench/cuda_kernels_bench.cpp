// Times the kernels of a GPU at DeepSeek-V3's shapes, one line each: time, GB/s of what must be
// read, TFLOP/s, and fractions of the rate of a device-to-device copy.
//   cuda_kernels_bench [decode|prefill|experts|linear|sample]...
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "base/cuda_api.h"
#include "base/device_cuda.h"
#include "base/error.h"
#include "base/random.h"
#include "layers/cuda/cublas_lt.h"
#include "layers/cuda/few_rows.h"
#include "layers/cuda/grouped_gemm_launch.h"
#include "layers/cuda/weight_layout.h"
#include "layers/kernels.h"
#include "layers/sampling.h"

namespace ferry {
namespace {

constexpr int64_t kLatent = 512, kRope = 64, kWidth = kLatent + kRope, kNope = 128, kValue = 128;

CudaDevice& gpu() {
    return cuda_device(0);
}

// Normal f32, bf16 or any fp8 codes but NaN (as bytes of int4 tiles: finite scales, too); a million
// of them again and again.
OwnedTensor random_on_gpu(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed,
                          float scale = 1) {
    OwnedTensor tensor(gpu(), dtype, shape);
    Random random(seed);
    std::vector<std::byte> some(size_t{4} << 20);
    const size_t element = static_cast<size_t>(size_bytes(dtype));
    for (size_t i = 0; i < some.size() / element; ++i) {
        const float value = scale * random.next_normal();
        const uint16_t half = f32_to_bf16(value);
        const uint8_t code = f32_to_fp8_e4m3(value);
        std::memcpy(&some[i * element],
                    dtype == DType::f32    ? static_cast<const void*>(&value)
                    : dtype == DType::bf16 ? static_cast<const void*>(&half)
                                           : static_cast<const void*>(&code),
                    element);
    }
    for (size_t at = 0; at < tensor.size_bytes(); at += some.size())
        gpu().copy_from_host(tensor.view().as<std::byte>() + at, some.data(),
                             std::min(some.size(), tensor.size_bytes() - at));
    return tensor;
}

// Median seconds of a call, of which each measurement makes as many as fill 5 ms.
double seconds_of(const std::function<void()>& call) {
    Event begin(gpu(), true), end(gpu(), true);
    const auto run = [&](int calls) {
        begin.record(gpu().stream());
        for (int i = 0; i < calls; ++i) call();
        end.record(gpu().stream());
        end.synchronize();
        return end.seconds_since(begin) / calls;
    };
    run(1);
    const int calls = std::clamp(static_cast<int>(5e-3 / run(2)), 1, 200);
    std::vector<double> seconds;
    for (int i = 0; i < 9; ++i) seconds.push_back(run(calls));
    std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
    return seconds[4];
}

double copy_bytes_per_second() {
    constexpr size_t kBytes = size_t{1} << 30;
    const Buffer from(gpu(), kBytes), to(gpu(), kBytes);
    return 2 * kBytes / seconds_of([&] {
               check_cuda(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice,
                                          gpu().stream()),
                          "copy");
           });
}

void report(const std::string& what, double bytes, double flops, double copy_rate,
            const std::function<void()>& call) {
    const double seconds = seconds_of(call);
    fmt::print("{:<72} {:>9.1f} us {:>7.0f} GB/s ({:>3.0f} % of copy) {:>6.1f} TFLOP/s\n", what,
               seconds * 1e6, bytes / seconds / 1e9, 100 * bytes / seconds / copy_rate,
               flops / seconds / 1e12);
}

void bench_decode(Kernels& kernels, double copy_rate) {
    constexpr int64_t kPages = 32768;  // 2.4 GB: no two rows of the largest batch share one
    const OwnedTensor cache = random_on_gpu(DType::bf16, {kPages, kPageTokens, kWidth}, 1);
    for (int64_t heads : {16, 128})
        for (int64_t batch : {1, 32, 128})
            for (int64_t context : {1024, 4096, 16384}) {
                const OwnedTensor q = random_on_gpu(DType::f32, {batch, heads, kLatent}, 2);
                const OwnedTensor rope = random_on_gpu(DType::f32, {batch, heads, kRope}, 3);
                const OwnedTensor out(gpu(), DType::f32, {batch, heads, kLatent});
                const int64_t num_pages = context / kPageTokens;
                std::vector<int32_t> pages(static_cast<size_t>(batch * num_pages));
                for (size_t i = 0; i < pages.size(); ++i)
                    pages[i] = static_cast<int32_t>(i * 1237 % kPages);
                std::vector<SequenceRows> sequences;
                for (int64_t i = 0; i < batch; ++i)
                    sequences.push_back(
                        {.first_row = i,
                         .num_rows = 1,
                         .first_position = context - 1,
                         .pages = std::span(pages).subspan(static_cast<size_t>(i * num_pages),
                                                           static_cast<size_t>(num_pages))});
                const double keys = static_cast<double>(batch * context);
                report(fmt::format("decode, {} heads, {} rows of {} keys", heads, batch, context),
                       keys * kWidth * 2,
                       2 * keys * static_cast<double>(heads * (kWidth + kLatent)), copy_rate, [&] {
                           kernels.mla_decode({.q_latent = q,
                                               .q_rope = rope,
                                               .cache = cache,
                                               .out = out,
                                               .sequences = sequences,
                                               .scale = 0.04f});
                       });
            }
}

void bench_prefill(Kernels& kernels, double copy_rate) {
    for (int64_t heads : {8, 128})
        for (int64_t rows : {1024, 4096}) {
            const OwnedTensor q = random_on_gpu(DType::f32, {rows, heads, kNope + kRope}, 1);
            const OwnedTensor kv = random_on_gpu(DType::bf16, {rows, heads, kNope + kValue}, 2);
            const OwnedTensor latent = random_on_gpu(DType::f32, {rows, kWidth}, 3);
            const OwnedTensor out(gpu(), DType::f32, {rows, heads, kValue});
            const double pairs = static_cast<double>(rows) * static_cast<double>(rows + 1) / 2;
            report(fmt::format("prefill, {} heads, {} rows", heads, rows),
                   static_cast<double>(rows * heads) *
                       (4 * (kNope + kRope + kValue) + 2 * (kNope + kValue)),
                   2 * pairs * static_cast<double>(heads * (kNope + kRope + kValue)), copy_rate,
                   [&] {
                       kernels.mla_prefill(
                           {.q = q,
                            .kv = kv,
                            .rope = latent.view().slice_columns(kLatent, kRope),
                            .out = out,
                            .rows = {.first_row = 0, .num_rows = rows, .first_position = 0},
                            .nope_dim = kNope,
                            .rope_dim = kRope,
                            .v_dim = kValue,
                            .scale = 0.07f});
                   });
        }
}

// 32 experts of a layer, as one of eight ranks has them; both shapes of an expert's matrices. fp8
// weights by fp8 rows and by f32, int4 by f32; on Hopper its own kernel and the one that any GPU
// can run.
void bench_experts(double copy_rate) {
    constexpr int64_t kExperts = 32;
    struct Shape {
        int64_t out, in;
    };
    struct Inputs {
        DType w, x;
        GemmInputs hopper;
    };
    for (const Inputs& inputs : {Inputs{DType::bf16, DType::f32, GemmInputs::bf16},
                                 Inputs{DType::fp8_e4m3, DType::fp8_e4m3, GemmInputs::fp8},
                                 Inputs{DType::fp8_e4m3, DType::f32, GemmInputs::widened_fp8},
                                 Inputs{DType::int4x2, DType::f32, GemmInputs::widened_int4}})
        for (const Shape& shape : {Shape{2048, 7168}, Shape{7168, 2048}}) {
            const bool int4 = inputs.w == DType::int4x2;
            const int64_t row_values =
                int4 ? weight_group_bytes({inputs.w, 1, shape.out, shape.in}) / shape.out
                     : shape.in;
            const OwnedTensor w =
                random_on_gpu(inputs.w, {kExperts, shape.out, row_values}, 1, 0.02f);
            const int64_t blocks = shape.in / kScaleBlock;
            const OwnedTensor scales =
                random_on_gpu(DType::f32, {kExperts, shape.out / kScaleBlock, blocks}, 2);
            constexpr int64_t kMostEach = 1024;
            const OwnedTensor x = random_on_gpu(inputs.x, {kExperts * kMostEach, shape.in}, 3);
            const OwnedTensor x_scales =
                random_on_gpu(DType::f32, {kExperts * kMostEach, blocks}, 4);
            const OwnedTensor rounded(gpu(), DType::bf16, {kExperts * kMostEach, shape.in});
            const OwnedTensor y(gpu(), DType::f32, {kExperts * kMostEach, shape.out});
            for (int64_t each : {int64_t{1}, int64_t{8}, int64_t{16}, int64_t{64}, int64_t{128},
                                 int64_t{256}, kMostEach}) {
                const int64_t rows = kExperts * each;
                std::vector<int64_t> offsets(kExperts + 1);
                for (size_t i = 0; i < offsets.size(); ++i)
                    offsets[i] = static_cast<int64_t>(i) * each;
                const Buffer device_offsets(gpu(), offsets.size() * sizeof(int64_t));
                gpu().copy_from_host(device_offsets.data(), offsets.data(),
                                     offsets.size() * sizeof(int64_t));
                const bool fp8 = inputs.w == DType::fp8_e4m3, x_fp8 = inputs.x == DType::fp8_e4m3;
                GroupedGemmParams params{.x = rounded.view().data(),
                                         .x_scales = x_fp8 ? x_scales.view().as<float>() : nullptr,
                                         .w = w.view().data(),
                                         .w_scales = scales.view().as<float>(),
                                         .y = y.view().as<float>(),
                                         .offsets = device_offsets.as<int64_t>(),
                                         .x_stride = shape.in,
                                         .x_scales_stride = blocks,
                                         .w_stride = shape.in,
                                         .w_scales_stride = blocks,
                                         .y_stride = shape.out,
                                         .groups = kExperts,
                                         .out = static_cast<int>(shape.out),
                                         .in = static_cast<int>(shape.in)};
                const RoundRows round{.x = x.view().data(),
                                      .x_stride = shape.in,
                                      .x_fp8 = x_fp8,
                                      .to = rounded.view().as<uint16_t>(),
                                      .max_rows = rows,
                                      .permute = fp8};
                const int processors = gpu().info().num_multiprocessors;
                const auto measure = [&](const char* kernel, const std::function<void()>& call) {
                    report(
                        fmt::format("{}, {} of {} x {}, {} by {}, {} rows each", kernel, kExperts,
                                    shape.out, shape.in, to_string(inputs.x), to_string(inputs.w),
                                    each),
                        static_cast<double>(w.size_bytes()),
                        2 * static_cast<double>(rows * shape.out) * static_cast<double>(shape.in),
                        copy_rate, call);
                };
                measure("experts on any GPU", [&] {
                    launch_round_rows(params, round, gpu().stream());
                    launch_grouped_gemm(params,
                                        fp8    ? GroupedWeights::fp8
                                        : int4 ? GroupedWeights::int4
                                               : GroupedWeights::bf16,
                                        2 * processors, gpu().stream());
                });
                if (gpu().info().capability != 90) continue;
                measure("experts on Hopper", [&] {
                    if (x_fp8)
                        params.x = x.view().data();
                    else
                        launch_round_rows(params, round, gpu().stream());
                    launch_grouped_gemm_wgmma(params, inputs.hopper, processors, gpu().stream());
                });
            }
        }
}

// fp8 products with rows that are fp8: the own kernel beside cuBLASLt, both as bare launches. As
// many matrices in turn as L2 does not hold.
void bench_linear(double copy_rate) {
    struct Shape {
        const char* name;
        int64_t out, in;
    };
    constexpr Shape kShapes[] = {{"w1", 18432, 7168},       {"w2", 7168, 18432},
                                 {"wo", 7168, 16384},       {"wq_b", 24576, 1536},
                                 {"shared w1", 2048, 7168}, {"shared w2", 7168, 2048},
                                 {"wq_a", 1536, 7168},      {"wkv_a", 576, 7168}};
    constexpr int64_t kMostSharedBytes = 227 << 10, kMostRows = 128,
                      kManyBytes = int64_t{300} << 20;
    CublasLt library(gpu());
    for (const Shape& s : kShapes) {
        const int64_t num = std::min<int64_t>(ceil_div(kManyBytes, s.out * s.in), 40);
        const int64_t blocks = s.in / kScaleBlock;
        const OwnedTensor w = random_on_gpu(DType::fp8_e4m3, {num, s.out, s.in}, 1, 0.5f);
        const OwnedTensor w_scales =
            random_on_gpu(DType::f32, {num, ceil_div(s.out, kScaleBlock), blocks}, 2);
        const OwnedTensor x = random_on_gpu(DType::fp8_e4m3, {kMostRows, s.in}, 3);
        const OwnedTensor x_scales = random_on_gpu(DType::f32, {kMostRows, blocks}, 4);
        const OwnedTensor y(gpu(), DType::f32, {kMostRows, s.out});
        const auto bytes = static_cast<double>(s.out * s.in);
        int64_t turn = 0;
        for (int64_t rows : {1, 8, 16, 32, 64, 128}) {
            const double flops = 2 * static_cast<double>(rows) * bytes;
            const GemmPlan& plan =
                library.plan({.inputs = GemmShape::Inputs::fp8,
                              .rows = ceil_div(rows, kFp8Multiple) * kFp8Multiple,
                              .out = s.out,
                              .in = s.in,
                              .x_stride = s.in,
                              .w_stride = s.in,
                              .y_stride = s.out});
            if (plan.possible)
                report(fmt::format("{}, {} rows, cuBLASLt", s.name, rows), bytes, flops, copy_rate,
                       [&] {
                           const int64_t i = turn++ % num;
                           library.run(plan, {.x = x.view().data(),
                                              .w = w.view().as<uint8_t>() + i * s.out * s.in,
                                              .y = y.view().as<float>(),
                                              .x_scales = x_scales.view().as<float>(),
                                              .w_scales = w_scales.view().as<float>()});
                       });
            if (rows > kFewRowsMost) continue;
            const FewRowsPlan own = few_rows_plan(rows, s.out, s.in, kMostSharedBytes);
            report(fmt::format("{}, {} rows, {}", s.name, rows, own.describe()), bytes, flops,
                   copy_rate, [&] {
                       const int64_t i = turn++ % num;
                       launch_few_rows({.x = x.view().data(),
                                        .x_scales = x_scales.view().as<float>(),
                                        .w = w.view().as<uint8_t>() + i * s.out * s.in,
                                        .w_scales = w_scales.view().as<float>(),
                                        .y = y.view().as<float>(),
                                        .x_stride = s.in,
                                        .x_scales_stride = blocks,
                                        .w_stride = s.in,
                                        .w_scales_stride = blocks,
                                        .y_stride = s.out,
                                        .rows = static_cast<int>(rows),
                                        .out = static_cast<int>(s.out),
                                        .in = static_cast<int>(s.in)},
                                       own, gpu().stream());
                   });
        }
    }
}

// With the copies of what to sample and of the tokens, and the wait for them.
void bench_sample(Kernels& kernels, double copy_rate) {
    constexpr int64_t kVocab = 129280;
    for (int64_t rows : {1, 32, 128}) {
        const OwnedTensor logits = random_on_gpu(DType::f32, {rows, kVocab}, 1);
        const auto sampler = kernels.make_sampler(kVocab, rows);
        for (double temperature : {0.0, 1.0}) {
            std::vector<SampleRow> wanted;
            for (int64_t row = 0; row < rows; ++row)
                wanted.push_back({.row = row, .temperature = temperature});
            report(fmt::format("sample, {} rows of {}, temperature {}", rows, kVocab, temperature),
                   static_cast<double>(logits.size_bytes()), 0, copy_rate,
                   [&] { sampler->sample(logits, wanted); });
        }
    }
}

int run(int argc, char** argv) {
    const std::set<std::string> known = {"decode", "prefill", "experts", "linear", "sample"};
    const std::set<std::string> named(argv + 1, argv + argc);
    for (const std::string& name : named)
        if (!known.contains(name)) {
            fmt::print(stderr, "cuda_kernels_bench: unknown kernels '{}': {}\n", name,
                       fmt::join(known, ", "));
            return 2;
        }
    const auto wanted = [&](const char* name) { return named.empty() || named.contains(name); };
    gpu().make_current();
    const auto kernels = make_cuda_kernels(0);
    const double copy_rate = copy_bytes_per_second();
    fmt::print("{}, copies {:.0f} GB/s (read and written)\n", gpu().info().name, copy_rate / 1e9);
    if (wanted("decode")) bench_decode(*kernels, copy_rate);
    if (wanted("prefill")) bench_prefill(*kernels, copy_rate);
    if (wanted("experts")) bench_experts(copy_rate);
    if (wanted("linear")) bench_linear(copy_rate);
    if (wanted("sample")) bench_sample(*kernels, copy_rate);
    return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are there whatever comes after
    try {
        return ferry::run(argc, argv);
    } catch (const ferry::Error& error) {  // 77: no GPU can be used
        fmt::print("{}\n", error.what());
        return error.kind() == ferry::ErrorKind::usage ? 77 : 1;
    }
}
