// The median, as every benchmark and report takes it.
#pragma once
#include <algorithm>
#include <vector>

namespace ferry {

// Of an even number of values: the mean of the two in the middle. 0 of none.
inline double median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace ferry
