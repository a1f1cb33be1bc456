#include "runtime/report/axis.h"

#include <algorithm>
#include <cmath>

#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr double kSlack = 1e-9;

double log_of(AxisKind kind, double value) {
    return kind == AxisKind::log2 ? std::log2(value) : std::log10(value);
}

double power_of(AxisKind kind, double exponent) {
    return kind == AxisKind::log2 ? std::exp2(exponent) : std::pow(10.0, exponent);
}

// The nearest of 1, 2, 5, 10 times a power of ten that is not below.
double nice_step(double step) {
    const double power = std::pow(10.0, std::floor(std::log10(step)));
    for (const double factor : {1.0, 2.0, 5.0})
        if (step <= factor * power * (1 + kSlack)) return factor * power;
    return 10 * power;
}

// All labels of an axis in one style. Sizes that are powers of two are known by their digits: 256,
// 1024, 4096.
void set_labels(AxisKind kind, std::vector<Tick>& ticks) {
    const bool large =
        std::ranges::any_of(ticks, [](const Tick& tick) { return std::abs(tick.value) >= 1e4; });
    for (Tick& tick : ticks) {
        if (kind == AxisKind::log2 && tick.value >= 1 && tick.value < 1e6)
            tick.label = format_number(tick.value, 7);
        else
            tick.label = large ? format_quantity(tick.value, "", 3) : format_number(tick.value, 4);
    }
}

std::vector<Tick> linear_ticks(double low, double high, int wanted) {
    std::vector<Tick> ticks;
    const double step = nice_step((high - low) / std::max(1, wanted));
    const double first = std::ceil(low / step - kSlack);
    for (int i = 0; i < 1000; ++i) {
        const double value = (first + i) * step;
        if (value > high + step * kSlack) break;
        ticks.push_back({std::abs(value) < step / 2 ? 0 : value, {}});
    }
    return ticks;
}

std::vector<Tick> decade_parts(double low, double high) {
    std::vector<Tick> ticks;
    for (double exponent = std::floor(std::log10(low)); exponent <= std::ceil(std::log10(high));
         ++exponent)
        for (const double factor : {1.0, 2.0, 5.0}) {
            const double value = factor * std::pow(10.0, exponent);
            if (value >= low * (1 - kSlack) && value <= high * (1 + kSlack))
                ticks.push_back({value, {}});
        }
    return ticks;
}

std::vector<Tick> place_ticks(AxisKind kind, double low, double high, int wanted) {
    if (!(high > low)) return {{low, {}}};
    if (kind == AxisKind::linear) return linear_ticks(low, high, wanted);
    const double first = std::ceil(log_of(kind, low) - kSlack);
    const double last = std::floor(log_of(kind, high) + kSlack);
    if (kind == AxisKind::log10 && last - first < 2) return decade_parts(low, high);
    const double stride = std::max(1.0, std::ceil((last - first + 1) / std::max(1, wanted)));
    std::vector<Tick> ticks;
    for (double exponent = first; exponent <= last; exponent += stride) {
        const double value = power_of(kind, exponent);
        ticks.push_back({value, {}});
    }
    return ticks;
}

}  // namespace

std::vector<Tick> make_ticks(AxisKind kind, double low, double high, int wanted) {
    std::vector<Tick> ticks = place_ticks(kind, low, high, wanted);
    set_labels(kind, ticks);
    return ticks;
}

Axis Axis::fit(AxisKind kind, const std::vector<double>& values, bool from_zero, int wanted) {
    Axis axis;
    axis.kind_ = kind;
    double low = INFINITY, high = -INFINITY;
    for (const double value : values) {
        if (!std::isfinite(value) || (kind != AxisKind::linear && value <= 0)) continue;
        low = std::min(low, value);
        high = std::max(high, value);
    }
    if (low > high) low = high = 1;
    if (kind == AxisKind::linear) {
        if (from_zero) low = std::min(0.0, low), high = std::max(0.0, high);
        if (high <= low) high = low + std::max(1.0, std::abs(low));
        const double step = nice_step((high - low) / std::max(1, wanted));
        axis.low_ = std::floor(low / step + kSlack) * step;
        axis.high_ = std::ceil(high / step - kSlack) * step;
    } else {
        const double widen = low == high ? 2 : 1;
        axis.low_ = low / widen;
        axis.high_ = high * widen;
        if (kind == AxisKind::log10) {  // to the next of 1, 2, 5
            const double power = std::pow(10.0, std::floor(std::log10(axis.low_) + kSlack));
            for (const double factor : {1.0, 2.0, 5.0})
                if (factor * power <= low * (1 + kSlack)) axis.low_ = factor * power;
            axis.high_ = nice_step(axis.high_);
        }
    }
    axis.ticks_ = make_ticks(kind, axis.low_, axis.high_, wanted);
    return axis;
}

double Axis::position(double value) const {
    if (kind_ == AxisKind::linear) return std::clamp((value - low_) / (high_ - low_), 0.0, 1.0);
    if (value <= 0) return 0;
    return std::clamp(
        (log_of(kind_, value) - log_of(kind_, low_)) / (log_of(kind_, high_) - log_of(kind_, low_)),
        0.0, 1.0);
}

}  // namespace ferry::report
