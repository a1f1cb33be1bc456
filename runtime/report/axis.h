// From values to pixels, and where an axis has its ticks.
#pragma once
#include <string>
#include <vector>

namespace ferry::report {

enum class AxisKind { linear, log2, log10 };

struct Tick {
    double value = 0;
    std::string label;
};

// Ticks in steps of 1, 2 or 5 times a power of ten, about `wanted` of them, within [low, high].
// Log axes: powers of the base, thinned out; log10 with less than two powers in range: 1, 2, 5 of
// each decade. Labels share one decimal prefix style: 0.5, 1 k, 2 M.
std::vector<Tick> make_ticks(AxisKind kind, double low, double high, int wanted);

class Axis {
  public:
    // `values`: what must fit. A linear axis begins at zero when `from_zero`, and ends at a tick.
    // An axis of one value is widened. Log axes ignore values that are not positive.
    static Axis fit(AxisKind kind, const std::vector<double>& values, bool from_zero, int wanted);

    AxisKind kind() const { return kind_; }
    double low() const { return low_; }
    double high() const { return high_; }
    const std::vector<Tick>& ticks() const { return ticks_; }
    // 0 at low, 1 at high; clamped.
    double position(double value) const;

  private:
    AxisKind kind_ = AxisKind::linear;
    double low_ = 0, high_ = 1;
    std::vector<Tick> ticks_;
};

}  // namespace ferry::report
