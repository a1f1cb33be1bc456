// When the tokens of requests came, and what that says: time to first token, time per output token,
// latency between tokens.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace ferry {

// The q-quantile by nearest rank: the ceil(q n)-th smallest (the smallest for q = 0). `sorted` is
// not empty.
double percentile(const std::vector<double>& sorted, double q);

struct Distribution {
    int64_t count = 0;
    double mean = 0, min = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Distribution distribution_of(std::vector<double> values);

// What one request saw, in seconds.
struct RequestLatency {
    int64_t index = 0;
    int64_t num_tokens = 0;
    double ttft_s = 0;   // from its arrival to its first token
    double tpot_s = 0;   // (last - first token) / (tokens - 1); 0 for one token
    double total_s = 0;  // from its arrival to its last token
};

// Asks the clock for each token, as soon as it is chosen.
class LatencyLog {
  public:
    using Clock = std::function<int64_t()>;  // nanoseconds
    // arrivals_s: of every request, after start(). Reserves room for `num_tokens`, so that token()
    // does not allocate.
    LatencyLog(Clock now_ns, const std::vector<double>& arrivals_s, int64_t num_tokens);

    void start() { begin_ns_ = now_ns_(); }
    double now_s() const { return static_cast<double>(now_ns_() - begin_ns_) * 1e-9; }
    void token(int64_t index);

    std::vector<RequestLatency> requests() const;  // that got tokens, by index
    // Times between one token of a request and its next, in order of the later one.
    const std::vector<double>& between_tokens_s() const { return between_s_; }

  private:
    struct Times {
        int64_t num = 0;
        double first_s = 0, last_s = 0;
    };
    Clock now_ns_;
    const std::vector<double>& arrivals_s_;
    int64_t begin_ns_ = 0;
    std::vector<Times> times_;
    std::vector<double> between_s_;
};

}  // namespace ferry
