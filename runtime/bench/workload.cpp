#include "runtime/bench/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "runtime/json_text.h"
#include "runtime/line_reader.h"

namespace ferry {
namespace {

constexpr int64_t kMaxLength = int64_t{1} << 20;

enum class Draws : uint64_t { input, output, tokens, shared, arrivals };

// A generator of its own for each purpose and request.
Random random_of(uint64_t seed, Draws draws, int64_t index) {
    return Random(
        mix64(mix64(mix64(seed) ^ static_cast<uint64_t>(draws)) ^ static_cast<uint64_t>(index)));
}

double uniform_f64(Random& random) {
    const uint64_t high = random.next_u32() >> 5, low = random.next_u32() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
}

int64_t below(Random& random, int64_t bound) {
    return static_cast<int64_t>(uniform_f64(random) * static_cast<double>(bound));
}

int64_t draw(const LengthSpec& spec, Random random) {
    switch (spec.kind) {
        case LengthSpec::Kind::fixed:
            return spec.low;
        case LengthSpec::Kind::uniform:
            return spec.low + below(random, spec.high - spec.low + 1);
        case LengthSpec::Kind::lognormal:
            break;
    }
    const double normal = random.next_normal();
    const double length = std::round(spec.median * std::exp(spec.sigma * normal));
    return static_cast<int64_t>(
        std::clamp(length, static_cast<double>(spec.low), static_cast<double>(spec.high)));
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts{""};
    for (const char c : text)
        if (c == separator)
            parts.emplace_back();
        else
            parts.back() += c;
    return parts;
}

bool read_positive(const std::string& text, double& number) {
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, number);
    return result.ec == std::errc() && result.ptr == end && number > 0 && number <= kMaxLength;
}
bool read_positive(const std::string& text, int64_t& number) {
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, number);
    return result.ec == std::errc() && result.ptr == end && number > 0 && number <= kMaxLength;
}

int64_t length_of(const Json& line, const char* key, const char* other, const std::string& where) {
    for (const char* name : {key, other}) {
        const auto found = line.find(name);
        if (found == line.end()) continue;
        const int64_t length = found->is_array()            ? static_cast<int64_t>(found->size())
                               : found->is_number_integer() ? found->get<int64_t>()
                                                            : 0;
        if (length < 1 || length > kMaxLength)
            throw Error(ErrorKind::input, "{}: {} must be a number of tokens, at least 1", where,
                        name);
        return length;
    }
    throw Error(ErrorKind::input, "{}: needs {} (or {})", where, key, other);
}

}  // namespace

LengthSpec parse_length(std::string_view text, const std::string& option) {
    const std::vector<std::string> parts = split(text, ':');
    LengthSpec spec;
    if (parts.size() == 1 && read_positive(parts[0], spec.low)) {
        spec.high = spec.low;
        return spec;
    }
    if (parts.size() == 2 && parts[0] == "fixed" && read_positive(parts[1], spec.low)) {
        spec.high = spec.low;
        return spec;
    }
    if (parts.size() == 3 && parts[0] == "uniform" && read_positive(parts[1], spec.low) &&
        read_positive(parts[2], spec.high) && spec.low <= spec.high) {
        spec.kind = LengthSpec::Kind::uniform;
        return spec;
    }
    if (parts.size() == 4 && parts[0] == "lognormal" && read_positive(parts[1], spec.median) &&
        read_positive(parts[2], spec.sigma) && read_positive(parts[3], spec.high)) {
        spec.kind = LengthSpec::Kind::lognormal;
        spec.low = 1;
        return spec;
    }
    throw Error(ErrorKind::usage,
                "{} {}: write a number of tokens (128), uniform:LOW:HIGH or "
                "lognormal:MEDIAN:SIGMA:MAX",
                option, text);
}

std::string to_string(const LengthSpec& spec) {
    switch (spec.kind) {
        case LengthSpec::Kind::fixed:
            return fmt::format("{}", spec.low);
        case LengthSpec::Kind::uniform:
            return fmt::format("uniform:{}:{}", spec.low, spec.high);
        case LengthSpec::Kind::lognormal:
            return fmt::format("lognormal:{}:{}:{}", spec.median, spec.sigma, spec.high);
    }
    return "?";
}

std::vector<RequestLengths> read_lengths(const std::string& path) {
    std::vector<RequestLengths> lengths;
    LineReader reader(path);
    for (TextLine line; reader.next(line);) {
        if (line.number == 1) refuse_compressed(path, line.text);
        if (is_blank(line.text)) continue;
        const std::string where = fmt::format("{}:{}", path, line.number);
        const Json json = Json::parse(line.text, nullptr, false);
        if (!json.is_object())
            throw Error(ErrorKind::input,
                        "{}: must be a JSON object with prompt_tokens and "
                        "max_tokens",
                        where);
        lengths.push_back({length_of(json, "prompt_tokens", "input", where),
                           length_of(json, "max_tokens", "output", where)});
    }
    if (lengths.empty()) throw Error(ErrorKind::input, "{}: holds no lines", path);
    return lengths;
}

std::vector<WorkloadRequest> make_workload(const WorkloadOptions& options) {
    const bool from_file = !options.lengths.empty();
    const int64_t num = from_file && options.num_requests == 0
                            ? static_cast<int64_t>(options.lengths.size())
                            : options.num_requests;
    std::vector<WorkloadRequest> workload(static_cast<size_t>(num));
    Random shared = random_of(options.seed, Draws::shared, 0);
    std::vector<int32_t> prefix;
    Random gaps = random_of(options.seed, Draws::arrivals, 0);
    double arrival_s = 0;
    for (int64_t i = 0; i < num; ++i) {
        WorkloadRequest& request = workload[static_cast<size_t>(i)];
        RequestLengths lengths;
        if (from_file)
            lengths = options.lengths[static_cast<size_t>(i) % options.lengths.size()];
        else
            lengths = {draw(options.input, random_of(options.seed, Draws::input, i)),
                       draw(options.output, random_of(options.seed, Draws::output, i))};
        request.max_tokens = lengths.output;
        const auto num_shared = static_cast<size_t>(
            std::floor(options.prefix_share * static_cast<double>(lengths.input)));
        while (prefix.size() < num_shared)
            prefix.push_back(static_cast<int32_t>(below(shared, options.vocab_size)));
        request.prompt.assign(prefix.begin(),
                              prefix.begin() + static_cast<std::ptrdiff_t>(num_shared));
        Random tokens = random_of(options.seed, Draws::tokens, i);
        while (static_cast<int64_t>(request.prompt.size()) < lengths.input)
            request.prompt.push_back(static_cast<int32_t>(below(tokens, options.vocab_size)));
        switch (options.arrivals) {
            case WorkloadOptions::Arrivals::offline:
                break;
            case WorkloadOptions::Arrivals::poisson:
                arrival_s += -std::log1p(-uniform_f64(gaps)) / options.rate;
                request.arrival_s = arrival_s;
                break;
            case WorkloadOptions::Arrivals::fixed:
                request.arrival_s = static_cast<double>(i) / options.rate;
                break;
        }
    }
    return workload;
}

bool WorkloadReader::next(RequestLine& line) {
    if (next_ >= num_) return false;
    const WorkloadRequest& from = workload_[static_cast<size_t>(next_)];
    line.index = next_;
    Request& request = line.requests.emplace_back();
    request.index = next_;
    request.id = {std::to_string(next_), true};
    request.prompt_tokens = from.prompt;
    request.sampling.max_tokens = from.max_tokens;
    request.sampling.seed = seed_;
    request.sampling.ignore_eos = true;
    ++next_;
    return true;
}

bool WorkloadReader::skip() {
    if (next_ >= num_) return false;
    ++next_;
    return true;
}

bool WorkloadReader::ready() {
    return next_ >= num_ || workload_[static_cast<size_t>(next_)].arrival_s <= now_s_();
}

bool WorkloadReader::all_ready() {
    return num_ == 0 || workload_[static_cast<size_t>(num_ - 1)].arrival_s <= now_s_();
}

double WorkloadReader::next_arrival_s() const {
    return next_ < num_ ? workload_[static_cast<size_t>(next_)].arrival_s : 0;
}

}  // namespace ferry
