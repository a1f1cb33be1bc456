#include "layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ferry {
namespace {

double mscale(double factor, double m) {
    return factor > 1 ? 0.1 * m * std::log(factor) + 1 : 1;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& c) {
    const double r = static_cast<double>(c.qk_rope_head_dim);
    std::vector<double> frequencies(static_cast<size_t>(c.qk_rope_head_dim / 2));
    for (size_t i = 0; i < frequencies.size(); ++i)
        frequencies[i] = std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / r);
    if (!c.yarn) return frequencies;

    // Dimension whose wavelength makes `rotations` turns over the original context.
    const auto correction = [&](double rotations) {
        return r *
               std::log(static_cast<double>(c.yarn->original_max_positions) /
                        (2 * std::numbers::pi * rotations)) /
               (2 * std::log(c.rope_theta));
    };
    const double low = std::max(std::floor(correction(c.yarn->beta_fast)), 0.0);
    double high = std::min(std::ceil(correction(c.yarn->beta_slow)), r - 1);
    if (high == low) high += 0.001;
    for (size_t i = 0; i < frequencies.size(); ++i) {
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequencies[i] = frequencies[i] / c.yarn->factor * ramp + frequencies[i] * (1 - ramp);
    }
    return frequencies;
}

OwnedTensor make_rope_table(const ModelConfig& c, int64_t num_positions, Device& device) {
    const std::vector<double> frequencies = rope_frequencies(c);
    double scale = 1;
    if (c.yarn)
        scale =
            mscale(c.yarn->factor, c.yarn->mscale) / mscale(c.yarn->factor, c.yarn->mscale_all_dim);
    OwnedTensor host(cpu_device(), DType::f32, {num_positions, c.qk_rope_head_dim});
    for (int64_t position = 0; position < num_positions; ++position) {
        float* row = host.view().row<float>(position);
        for (size_t i = 0; i < frequencies.size(); ++i) {
            const double angle = static_cast<double>(position) * frequencies[i];
            row[2 * i] = static_cast<float>(std::cos(angle) * scale);
            row[2 * i + 1] = static_cast<float>(std::sin(angle) * scale);
        }
    }
    if (device.type() == DeviceType::cpu) return host;
    OwnedTensor table(device, DType::f32, {num_positions, c.qk_rope_head_dim});
    device.copy_from_host(table.view().data(), host.view().data(), host.size_bytes());
    return table;
}

}  // namespace ferry
