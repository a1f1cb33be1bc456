// Two results of the same benchmark, measurement by measurement, and whether a difference says
// anything.
#pragma once
#include <string>
#include <vector>

#include "runtime/report/results.h"

namespace ferry::report {

enum class Verdict { worse, within_noise, better };

struct Comparison {
    std::string name;    // of the measurement: case and, for sweeps, size
    std::string metric;  // "output tokens/s"
    std::string unit;
    double old_value = 0, new_value = 0;
    double change = 0;  // new / old - 1
    double noise = 0;
    Verdict verdict = Verdict::within_noise;
};

// The rule: a difference counts when |new / old - 1| exceeds the noise, and noise is the sum of
// both results' spreads, at least 2 %. The spread of a measurement is half the distance between its
// smallest and largest repetition, over its median; where a result tells only the best and the
// median of its repetitions, it is their distance over the median.
constexpr double kLeastNoise = 0.02;
extern const char* const kNoiseRule;  // the same, for readers

// Spread of repetitions, 0 for fewer than two.
double spread_of(const std::vector<double>& repetitions);
Verdict judge(double change, double noise, bool higher_is_better);

// Measurements that both results have, in the order of `now`; `missing` (may be null) receives the
// names of those that only one of them has. Both are of the same benchmark.
std::vector<Comparison> compare(const BenchResult& old, const BenchResult& now,
                                std::vector<std::string>* missing);

// What else differs between the two, other than versions and where they ran: "input tokens: 128,
// was 512".
std::vector<std::string> differences(const BenchResult& old, const BenchResult& now);

}  // namespace ferry::report
