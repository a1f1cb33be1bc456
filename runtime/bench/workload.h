// What a throughput benchmark asks of the engine: requests with lengths, shared prefixes and times
// of arrival. Pure and exact: the same options give the same workload on every rank and machine
// with the same C library.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/request_reader.h"

namespace ferry {

// Numbers of tokens: of all requests alike, or drawn for each.
struct LengthSpec {
    enum class Kind { fixed, uniform, lognormal } kind = Kind::fixed;
    int64_t low = 128;   // fixed: the length; uniform, lognormal: the shortest
    int64_t high = 128;  // uniform, lognormal: the longest, inclusive
    double median = 0;   // lognormal: exp(mu)
    double sigma = 0;    // lognormal: standard deviation of the logarithm
};
// "128", "fixed:128", "uniform:16:256", "lognormal:MEDIAN:SIGMA:MAX" (lengths outside 1 ... MAX
// become 1 or MAX). Throws Error(usage) naming `option`.
LengthSpec parse_length(std::string_view text, const std::string& option);
std::string to_string(const LengthSpec& spec);

// One pair for each request, from JSONL lines {"prompt_tokens": 100 or [ids], "max_tokens": 20} or
// {"input": 100, "output": 20}. Throws Error(input) naming the line.
struct RequestLengths {
    int64_t input = 1;
    int64_t output = 1;
};
std::vector<RequestLengths> read_lengths(const std::string& path);

struct WorkloadOptions {
    int64_t num_requests = 32;  // 0 with `lengths`: as many as these
    LengthSpec input{}, output{};
    std::vector<RequestLengths> lengths{};  // used in turn instead of input and output, if any
    // The first floor(ratio * length) tokens of a prompt are those of a sequence that all share.
    double prefix_share = 0;
    int64_t vocab_size = 2;
    enum class Arrivals { offline, poisson, fixed } arrivals = Arrivals::offline;
    double rate = 0;  // requests/s, for poisson and fixed
    uint64_t seed = 1;
};

struct WorkloadRequest {
    double arrival_s = 0;  // after the start; in order
    std::vector<int32_t> prompt;
    int64_t max_tokens = 1;
};

// Request i depends on the seed and i only (arrivals on those before it too). Poisson: gaps are
// -ln(1 - u) / rate with 53-bit u; fixed: request i arrives at i / rate.
std::vector<WorkloadRequest> make_workload(const WorkloadOptions& options);

// The workload as lines of requests that ignore the end of sentence; `now_s`: seconds since the
// start, by which lines become ready.
class WorkloadReader : public RequestReader {
  public:
    WorkloadReader(const std::vector<WorkloadRequest>& workload, int64_t num_requests,
                   uint64_t seed, std::function<double()> now_s)
        : workload_(workload), num_(num_requests), seed_(seed), now_s_(std::move(now_s)) {}
    bool next(RequestLine& line) override;
    bool skip() override;
    bool ready() override;
    bool all_ready() override;
    double next_arrival_s() const;  // of a line that is not ready

  private:
    const std::vector<WorkloadRequest>& workload_;
    int64_t num_;
    uint64_t seed_;
    std::function<double()> now_s_;
    int64_t next_ = 0;
};

}  // namespace ferry
