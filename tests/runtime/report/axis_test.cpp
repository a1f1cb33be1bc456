#include "runtime/report/axis.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ferry::report {
namespace {

std::vector<double> values_of(const std::vector<Tick>& ticks) {
    std::vector<double> values;
    for (const Tick& tick : ticks) values.push_back(tick.value);
    return values;
}

TEST(ReportAxis, LinearTicksStepBy125) {
    EXPECT_EQ(values_of(make_ticks(AxisKind::linear, 0, 100, 5)),
              (std::vector<double>{0, 20, 40, 60, 80, 100}));
    EXPECT_EQ(values_of(make_ticks(AxisKind::linear, 0, 7, 4)), (std::vector<double>{0, 2, 4, 6}));
    for (double high = 1e-4; high < 1e7; high *= 1.7) {
        const std::vector<Tick> ticks = make_ticks(AxisKind::linear, 0, high, 5);
        ASSERT_GE(ticks.size(), 2u) << high;
        EXPECT_LE(ticks.size(), 7u) << high;
        const double step = ticks[1].value - ticks[0].value;
        const double lead = step / std::pow(10.0, std::floor(std::log10(step) + 1e-9));
        EXPECT_TRUE(std::abs(lead - 1) < 1e-6 || std::abs(lead - 2) < 1e-6 ||
                    std::abs(lead - 5) < 1e-6)
            << step;
    }
}

TEST(ReportAxis, LogTicksArePowersOrPartsOfDecades) {
    EXPECT_EQ(values_of(make_ticks(AxisKind::log2, 1, 64, 10)),
              (std::vector<double>{1, 2, 4, 8, 16, 32, 64}));
    EXPECT_EQ(values_of(make_ticks(AxisKind::log10, 1, 1000, 10)),
              (std::vector<double>{1, 10, 100, 1000}));
    EXPECT_EQ(values_of(make_ticks(AxisKind::log10, 10, 50, 10)),
              (std::vector<double>{10, 20, 50}));
}

TEST(ReportAxis, LabelsOfAnAxisHaveOneStyle) {
    const std::vector<Tick> ticks = make_ticks(AxisKind::log10, 1000, 100000, 5);
    EXPECT_EQ(ticks.front().label, "1\xC2\xA0k");
    EXPECT_EQ(ticks.back().label, "100\xC2\xA0k");
    EXPECT_EQ(make_ticks(AxisKind::log2, 1024, 4096, 5).front().label, "1024");
}

TEST(ReportAxis, EndsAtTicksAndHoldsAllValues) {
    const Axis axis = Axis::fit(AxisKind::linear, {3, 97}, true, 5);
    EXPECT_EQ(axis.low(), 0);
    EXPECT_EQ(axis.high(), 100);
    EXPECT_DOUBLE_EQ(axis.position(50), 0.5);
    EXPECT_DOUBLE_EQ(axis.position(1e9), 1);
    const Axis log = Axis::fit(AxisKind::log10, {3, 700}, false, 5);
    EXPECT_LE(log.low(), 3);
    EXPECT_GE(log.high(), 700);
    EXPECT_DOUBLE_EQ(log.position(0), 0);
}

TEST(ReportAxis, OneValueOrNoneStillHasARange) {
    for (const AxisKind kind : {AxisKind::linear, AxisKind::log2, AxisKind::log10})
        for (const std::vector<double>& values :
             {std::vector<double>{}, std::vector<double>{5}, std::vector<double>{-1, NAN}}) {
            const Axis axis = Axis::fit(kind, values, true, 5);
            EXPECT_LT(axis.low(), axis.high());
            EXPECT_TRUE(std::isfinite(axis.position(5)));
        }
}

}  // namespace
}  // namespace ferry::report
