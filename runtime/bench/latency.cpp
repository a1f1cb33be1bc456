#include "runtime/bench/latency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace ferry {

double percentile(const std::vector<double>& sorted, double q) {
    FERRY_CHECK(!sorted.empty() && q >= 0 && q <= 1);
    const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
    return sorted[rank == 0 ? 0 : rank - 1];
}

Distribution distribution_of(std::vector<double> values) {
    if (values.empty()) return {};
    std::sort(values.begin(), values.end());
    return {.count = static_cast<int64_t>(values.size()),
            .mean = std::accumulate(values.begin(), values.end(), 0.0) /
                    static_cast<double>(values.size()),
            .min = values.front(),
            .p50 = percentile(values, 0.5),
            .p90 = percentile(values, 0.9),
            .p99 = percentile(values, 0.99),
            .max = values.back()};
}

LatencyLog::LatencyLog(Clock now_ns, const std::vector<double>& arrivals_s, int64_t num_tokens)
    : now_ns_(std::move(now_ns)), arrivals_s_(arrivals_s), times_(arrivals_s.size()) {
    between_s_.reserve(static_cast<size_t>(num_tokens));
}

void LatencyLog::token(int64_t index) {
    Times& times = times_[static_cast<size_t>(index)];
    const double now = now_s();
    if (times.num == 0)
        times.first_s = now;
    else
        between_s_.push_back(now - times.last_s);
    times.last_s = now;
    ++times.num;
}

std::vector<RequestLatency> LatencyLog::requests() const {
    std::vector<RequestLatency> result;
    for (size_t i = 0; i < times_.size(); ++i) {
        const Times& times = times_[i];
        if (times.num == 0) continue;
        result.push_back({.index = static_cast<int64_t>(i),
                          .num_tokens = times.num,
                          .ttft_s = times.first_s - arrivals_s_[i],
                          .tpot_s = times.num > 1 ? (times.last_s - times.first_s) /
                                                        static_cast<double>(times.num - 1)
                                                  : 0.0,
                          .total_s = times.last_s - arrivals_s_[i]});
    }
    return result;
}

}  // namespace ferry
