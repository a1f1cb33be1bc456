// A kernel as a Google Benchmark, beside the two rates that bound it
// (layers/cpu/rates.h):
//   best_us, GBps, GFLOPs    of the best iteration
//   of_read, of_peak         against the machine's read bandwidth and
//   multiply-add peak of_bound                 against whichever of the two
//   bounds is higher
#pragma once
#include <benchmark/benchmark.h>

#include "base/random.h"
#include "layers/cpu/rates.h"
#include "layers/kernels.h"

namespace ferry {

constexpr size_t kBeyondCache = size_t{160} << 20;

inline OwnedTensor filled(std::initializer_list<int64_t> shape, DType dtype = DType::f32) {
    OwnedTensor tensor(cpu_device(), dtype, shape);
    Random random(1);
    for (int64_t i = 0; i < tensor.view().count(); ++i) {
        const float value = random.next_uniform() - 0.5f;
        if (dtype == DType::f32)
            tensor.view().as<float>()[i] = value;
        else
            tensor.view().as<uint16_t>()[i] = f32_to_bf16(value);
    }
    return tensor;
}

// A weight whose every byte is written, with values of ordinary size in any
// type.
inline Weight filled_weight(Kernels& kernels, const WeightSpec& spec) {
    Weight weight = kernels.make_weight(spec);
    uint8_t* bytes = weight.data.as<uint8_t>();
    for (size_t i = 0; i < weight.data.size_bytes(); ++i)
        bytes[i] = static_cast<uint8_t>(8 + i * 37 % 53);
    std::fill_n(weight.scales.as<float>(), weight.scales.size_bytes() / 4, 1e-3f);
    return weight;
}

// `body` (which moves `bytes` and does `flops`) as the benchmark. `memory`: for
// the read loop.
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
inline const Buffer& large_memory() {
    static const Buffer memory = [] {
        Buffer buffer(cpu_device(), kBeyondCache);
        std::fill_n(buffer.as<uint8_t>(), kBeyondCache, uint8_t{1});
        return buffer;
    }();
    return memory;
}

}  // namespace ferry
