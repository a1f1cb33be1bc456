#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/random.h"
#include "layers/sampling_math.h"

namespace ferry {
namespace {

constexpr int64_t kBlock = 64;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kGreedyBelow = 1e-5;

// w = exp((l - max) / temperature) for all, and their sum.
uint64_t weigh(std::span<const float> logits, float max_logit, float per_temperature,
               float* weights) {
    for (size_t i = 0; i < logits.size(); ++i)
        weights[i] = token_weight(logits[i], max_logit, per_temperature);
    uint64_t sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) sum += weight_units(weights[i]);
    return sum;
}

struct Best {
    int32_t id;
    float logit;
    bool has_nan;
};

Best find_best(std::span<const float> logits) {
    // Eight independent lanes, so that it runs at memory speed; the order of a maximum is free.
    constexpr size_t kLanes = 8;
    float lanes[kLanes];
    std::fill_n(lanes, kLanes, kMinusInfinity);
    int32_t nan_lanes[kLanes] = {};
    const size_t whole = logits.size() / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes)
        for (size_t j = 0; j < kLanes; ++j) {
            const float value = logits[i + j];
            lanes[j] = value > lanes[j] ? value : lanes[j];
            nan_lanes[j] |= value != value;
        }
    Best best{0, *std::max_element(lanes, lanes + kLanes), false};
    for (const int32_t lane : nan_lanes) best.has_nan |= lane != 0;
    for (size_t i = whole; i < logits.size(); ++i) {
        best.logit = std::max(best.logit, logits[i]);
        best.has_nan |= std::isnan(logits[i]);
    }
    best.id =
        static_cast<int32_t>(std::find(logits.begin(), logits.end(), best.logit) - logits.begin());
    return best;
}

double uniform_of(const SampleInput& input) {
    const uint64_t seed = input.params.seed;
    const uint64_t position = input.tokens.size() - static_cast<uint64_t>(input.num_prompt_tokens);
    const auto bits = philox4x32(
        {static_cast<uint32_t>(position), static_cast<uint32_t>(input.sample),
         static_cast<uint32_t>(input.id_hash), static_cast<uint32_t>(input.id_hash >> 32)},
        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    return uniform_f64(bits[0], bits[1]);
}

}  // namespace

Sampler::Sampler(int64_t vocab_size)
    : vocab_size_(vocab_size),
      adjusted_(static_cast<size_t>(vocab_size)),
      weights_(static_cast<size_t>(vocab_size)),
      seen_epoch_(static_cast<size_t>(vocab_size)) {
    heap_.reserve(static_cast<size_t>((vocab_size + kBlock - 1) / kBlock));
    kept_.reserve(static_cast<size_t>(vocab_size));
    top_.reserve(static_cast<size_t>(vocab_size));
}

SampledToken Sampler::sample(const SampleInput& input) {
    FERRY_CHECK(static_cast<int64_t>(input.logits.size()) == vocab_size_, "{} logits, expected {}",
                input.logits.size(), vocab_size_);
    SampledToken result;
    const Best raw_best = find_best(input.logits);
    if (raw_best.has_nan || !std::isfinite(raw_best.logit)) return result;
    const std::span<const float> logits = adjusted_logits(input);
    const bool as_they_came = logits.data() == input.logits.data();
    const Best best = as_they_came ? raw_best : find_best(logits);
    if (!std::isfinite(best.logit)) return result;
    result.token =
        input.params.temperature < kGreedyBelow ? best.id : draw(input, logits, best.logit);
    if (input.params.logprobs) add_logprobs(input, raw_best.logit, result);
    return result;
}

std::span<const float> Sampler::adjusted_logits(const SampleInput& input) {
    const float penalty = static_cast<float>(input.params.repetition_penalty);
    if (penalty == 1.0f && input.banned.empty()) return input.logits;
    std::copy(input.logits.begin(), input.logits.end(), adjusted_.begin());
    for (const int32_t id : input.banned)
        if (id >= 0 && id < vocab_size_) adjusted_[static_cast<size_t>(id)] = kMinusInfinity;
    if (penalty == 1.0f) return adjusted_;
    if (++epoch_ == 0) {
        std::fill(seen_epoch_.begin(), seen_epoch_.end(), 0);
        epoch_ = 1;
    }
    for (const int32_t id : input.tokens) {
        if (id < 0 || id >= vocab_size_ || seen_epoch_[static_cast<size_t>(id)] == epoch_) continue;
        seen_epoch_[static_cast<size_t>(id)] = epoch_;
        float& logit = adjusted_[static_cast<size_t>(id)];
        logit = logit > 0 ? logit / penalty : logit * penalty;
    }
    return adjusted_;
}

int32_t Sampler::draw(const SampleInput& input, std::span<const float> logits, float max_logit) {
    const SamplingParams& params = input.params;
    const double u = uniform_of(input);
    uint64_t running = 0;
    if ((params.top_k <= 0 || params.top_k >= vocab_size_) && params.top_p >= 1 &&
        params.min_p <= 0) {
        const float per_temperature = 1.0f / static_cast<float>(params.temperature);
        const uint64_t target =
            units_to_draw(u, weigh(logits, max_logit, per_temperature, weights_.data()));
        int32_t id = -1;
        while (running <= target) running += weight_units(weights_[static_cast<size_t>(++id)]);
        return id;
    }
    keep_by_rank(input, logits, max_logit);
    std::sort(kept_.begin(), kept_.end(), [](const Kept& a, const Kept& b) { return a.id < b.id; });
    uint64_t total = 0;
    for (const Kept& kept : kept_) total += kept.units;
    const uint64_t target = units_to_draw(u, total);
    size_t i = 0;
    while ((running += kept_[i].units) <= target) ++i;
    return kept_[i].id;
}

// Fills kept_, best first.
void Sampler::keep_by_rank(const SampleInput& input, std::span<const float> logits,
                           float max_logit) {
    const SamplingParams& params = input.params;
    const float per_temperature = 1.0f / static_cast<float>(params.temperature);
    const bool has_top_k = params.top_k > 0 && params.top_k < vocab_size_;
    rank(logits);
    kept_.clear();
    const auto rank_next = [&] {
        const int32_t id = next_ranked();
        const float logit = logits[static_cast<size_t>(id)];
        const float weight = token_weight(logit, max_logit, per_temperature);
        return Kept{id, weight, weight_units(weight)};
    };
    uint64_t total = 0;  // what top_p is a share of
    if (has_top_k)
        for (int64_t i = 0; i < params.top_k; ++i) {
            kept_.push_back(rank_next());
            total += kept_.back().units;
        }
    else if (params.top_p < 1)
        total = weigh(logits, max_logit, per_temperature, weights_.data());
    const uint64_t enough =
        params.top_p < 1 ? units_enough(params.top_p, total) : std::numeric_limits<uint64_t>::max();

    const size_t limit = has_top_k ? kept_.size() : logits.size();
    size_t num_kept = 0;
    for (uint64_t better = 0; num_kept < limit; ++num_kept) {
        // Without top_k the ranking is not made further than top_p and min_p ask for.
        if (num_kept == kept_.size()) kept_.push_back(rank_next());
        const Kept& next = kept_[num_kept];
        if (num_kept > 0 && (better >= enough || next.weight < params.min_p)) break;
        better += next.units;
    }
    kept_.resize(num_kept);
}

void Sampler::add_logprobs(const SampleInput& input, float max_logit, SampledToken& result) {
    const double log_sum = log_of_units(weigh(input.logits, max_logit, 1.0f, weights_.data()));
    const auto logprob = [&](int32_t id) {
        const float logit = input.logits[static_cast<size_t>(id)];
        return static_cast<float>(static_cast<double>(logit - max_logit) - log_sum);
    };
    result.logprob = logprob(result.token);
    top_.clear();
    const int64_t num_top = std::min(*input.params.logprobs, vocab_size_);
    if (num_top > 0) rank(input.logits);
    for (int64_t i = 0; i < num_top; ++i) {
        const int32_t id = next_ranked();
        top_.push_back({id, logprob(id)});
    }
    result.top = top_;
}

bool Sampler::ranks_lower(const Ranked& a, const Ranked& b) {
    return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
}

void Sampler::rank(std::span<const float> logits) {
    ranked_ = logits;
    heap_.clear();
    for (int64_t begin = 0; begin < vocab_size_; begin += kBlock) {
        const Best best = find_best(block_of(begin));
        heap_.push_back({best.logit, static_cast<int32_t>(begin) + best.id});
    }
    std::make_heap(heap_.begin(), heap_.end(), ranks_lower);
}

std::span<const float> Sampler::block_of(int64_t id) const {
    const int64_t begin = id / kBlock * kBlock;
    return ranked_.subspan(static_cast<size_t>(begin),
                           static_cast<size_t>(std::min(kBlock, vocab_size_ - begin)));
}

int32_t Sampler::next_ranked() {
    std::pop_heap(heap_.begin(), heap_.end(), ranks_lower);
    const Ranked taken = heap_.back();
    heap_.pop_back();
    // The block's next best is the highest of those that rank lower than the one taken.
    Ranked next{kMinusInfinity, -1};
    int32_t id = static_cast<int32_t>(taken.id / kBlock * kBlock);
    for (const float logit : block_of(taken.id)) {
        const Ranked candidate{logit, id++};
        if (ranks_lower(candidate, taken) && (next.id < 0 || ranks_lower(next, candidate)))
            next = candidate;
    }
    if (next.id >= 0) {
        heap_.push_back(next);
        std::push_heap(heap_.begin(), heap_.end(), ranks_lower);
    }
    return taken.id;
}

}  // namespace ferry
