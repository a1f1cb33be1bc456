#include "runtime/device_rates.h"

#include <vector>

#include "base/random.h"

namespace ferry {
namespace {

constexpr int kWarmups = 3, kRepetitions = 10;
constexpr int64_t kSize = 8192;

template <typename Body>
double best_s(Kernels& kernels, Body&& body) {
    double best = 1e30;
    for (int i = 0; i < kWarmups + kRepetitions; ++i) {
        kernels.device().synchronize();
        const double seconds = BenchClock::wall().seconds([&] {
            body();
            kernels.device().synchronize();
        });
        if (i >= kWarmups) best = std::min(best, seconds);
    }
    return best;
}

}  // namespace

Rates measure_device_rates(Kernels& kernels) {
    Rates rates;
    Device& device = kernels.device();
    {
        const OwnedTensor from(device, DType::f32, {1, 4 * kSize, kSize});
        const OwnedTensor to(device, DType::f32, {4 * kSize, kSize});
        const double seconds = best_s(kernels, [&] { kernels.tree_sum(from, to); });
        rates.read_bytes_per_s = 2 * static_cast<double>(to.size_bytes()) / seconds;
    }
    Weight weight = kernels.make_weight({.dtype = DType::bf16, .out = kSize, .in = kSize});
    std::vector<uint16_t> values(static_cast<size_t>(kSize * kSize));
    std::vector<float> rows(values.size());
    for (size_t i = 0; i < values.size(); ++i) {  // random: zeros would be faster
        rows[i] = static_cast<float>(mix64(i) >> 40) * 0x1p-23f - 1;
        values[i] = f32_to_bf16(static_cast<float>(mix64(~i) >> 40) * 0x1p-23f - 1);
    }
    kernels.pack(weight, 0, 0, Tensor(values.data(), DType::bf16, {kSize, kSize}), nullptr);
    const OwnedTensor x(device, DType::f32, {kSize, kSize}), y(device, DType::f32, {kSize, kSize});
    device.copy_from_host(x.view().data(), rows.data(), x.size_bytes());
    const double seconds = best_s(kernels, [&] { kernels.gemm(x, weight, y); });
    rates.peak_flops_per_s = 2.0 * kSize * kSize * kSize / seconds;
    return rates;
}

}  // namespace ferry
