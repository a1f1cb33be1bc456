#include "layers/cuda/sampling.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/cuda_api.h"
#include "base/device_cuda.h"
#include "layers/sampling_math.h"

namespace ferry {
namespace {

constexpr double kGreedyBelow = 1e-5;

bool is_adjusted(const SampleRow& input) {
    return input.repetition_penalty != 1 || !input.banned.empty();
}

// Room for `count` values on the device and in pinned memory.
template <typename T>
void reserve_both(CudaDevice& device, size_t count, Buffer& on_device, Buffer& pinned) {
    const size_t bytes = count * sizeof(T);
    if (on_device.size_bytes() >= bytes) return;
    const size_t size = std::max(2 * on_device.size_bytes(), bytes);
    on_device = Buffer(device, size);
    pinned = pinned_host_memory(size);
}

}  // namespace

CudaSampler::CudaSampler(CudaDevice& device, int64_t vocab_size, int64_t max_rows)
    : device_(device), vocab_size_(vocab_size) {
    const auto rows = static_cast<size_t>(max_rows);
    reserve_both<SampleQuery>(device, rows, device_queries_, pinned_queries_);
    reserve_both<SampleResult>(device, rows, device_results_, pinned_results_);
    queries_.reserve(rows);
    sampled_.reserve(rows);
}

void CudaSampler::prepare(std::span<const SampleRow> inputs) {
    queries_.clear();
    tokens_.clear();
    int64_t num_top = 0;
    for (const SampleRow& input : inputs) {
        const bool greedy = input.temperature < kGreedyBelow;
        const int64_t wanted = std::min(input.num_top, vocab_size_);
        const auto generated = static_cast<int64_t>(input.tokens.size()) - input.num_prompt_tokens;
        SampleQuery query{
            .row = input.row,
            .seed = input.seed,
            .id_hash = input.id_hash,
            .top_p = input.top_p,
            .min_p = input.min_p,
            .sample = static_cast<uint32_t>(input.sample),
            .position = static_cast<uint32_t>(generated),
            .per_temperature = greedy ? 0.0f : 1.0f / static_cast<float>(input.temperature),
            .repetition_penalty = static_cast<float>(input.repetition_penalty),
            .top_k = static_cast<int32_t>(std::clamp<int64_t>(input.top_k, 0, vocab_size_)),
            .num_top = static_cast<int32_t>(wanted),
            .first_token = static_cast<int64_t>(tokens_.size()),
            .first_top = num_top};
        if (query.repetition_penalty != 1.0f) {
            tokens_.insert(tokens_.end(), input.tokens.begin(), input.tokens.end());
            query.num_tokens = static_cast<int32_t>(input.tokens.size());
        }
        query.first_banned = static_cast<int64_t>(tokens_.size());
        tokens_.insert(tokens_.end(), input.banned.begin(), input.banned.end());
        query.num_banned = static_cast<int32_t>(input.banned.size());
        num_top += std::max<int64_t>(wanted, 0);
        queries_.push_back(query);
    }
    logprobs_.resize(static_cast<size_t>(num_top));
}

void CudaSampler::reserve(std::span<const SampleRow> inputs) {
    reserve_both<SampleQuery>(device_, queries_.size(), device_queries_, pinned_queries_);
    reserve_both<SampleResult>(device_, queries_.size(), device_results_, pinned_results_);
    reserve_both<int32_t>(device_, tokens_.size(), device_tokens_, pinned_tokens_);
    reserve_both<RankedToken>(device_, logprobs_.size(), device_top_, pinned_top_);
    const size_t adjusted_bytes = inputs.size() * static_cast<size_t>(vocab_size_) * sizeof(float);
    if (std::any_of(inputs.begin(), inputs.end(), is_adjusted) &&
        adjusted_.size_bytes() < adjusted_bytes)
        adjusted_ = Buffer(device_, adjusted_bytes);
}

// Everything in the order of the stream; the host waits once, for the results.
void CudaSampler::run(const Tensor& logits) {
    device_.make_current();
    const auto stream = device_.stream();
    const auto upload = [&](const auto& values, const Buffer& pinned, const Buffer& to) {
        const size_t bytes = values.size() * sizeof(values[0]);
        if (bytes == 0) return;
        std::memcpy(pinned.data(), values.data(), bytes);
        check_cuda(cudaMemcpyAsync(to.data(), pinned.data(), bytes, cudaMemcpyHostToDevice, stream),
                   "upload what to sample");
    };
    const auto download = [&](size_t bytes, const Buffer& from, const Buffer& pinned) {
        if (bytes == 0) return;
        check_cuda(
            cudaMemcpyAsync(pinned.data(), from.data(), bytes, cudaMemcpyDeviceToHost, stream),
            "copy tokens to the host");
    };
    upload(queries_, pinned_queries_, device_queries_);
    upload(tokens_, pinned_tokens_, device_tokens_);
    launch_sample({.logits = logits.as<float>(),
                   .logits_stride = logits.row_stride(),
                   .vocab = vocab_size_,
                   .queries = device_queries_.as<SampleQuery>(),
                   .tokens = device_tokens_.as<int32_t>(),
                   .adjusted = adjusted_.as<float>(),
                   .results = device_results_.as<SampleResult>(),
                   .top = device_top_.as<RankedToken>()},
                  static_cast<int>(queries_.size()), stream);
    download(queries_.size() * sizeof(SampleResult), device_results_, pinned_results_);
    download(logprobs_.size() * sizeof(RankedToken), device_top_, pinned_top_);
    check_cuda(cudaStreamSynchronize(stream), "wait for tokens");
}

std::span<const SampledRow> CudaSampler::sample(const Tensor& logits,
                                                std::span<const SampleRow> inputs) {
    check_shape(logits, "logits", DType::f32, {logits.rows(), vocab_size_});
    for (const SampleRow& input : inputs)
        FERRY_CHECK(input.row >= 0 && input.row < logits.rows(), "row {} of {}", input.row,
                    logits.describe());
    sampled_.clear();
    if (inputs.empty()) return sampled_;
    prepare(inputs);
    reserve(inputs);
    run(logits);
    const auto* results = pinned_results_.as<SampleResult>();
    const auto* top = pinned_top_.as<RankedToken>();
    for (size_t i = 0; i < inputs.size(); ++i) {
        const SampleQuery& query = queries_[i];
        const auto num_top = static_cast<size_t>(std::max(query.num_top, 0));
        const auto first = static_cast<size_t>(query.first_top);
        SampledRow sampled;
        sampled.token = results[i].token;
        if (query.num_top >= 0 && sampled.token >= 0) {
            const double log_sum = log_of_units(results[i].units);
            const auto logprob = [&](float logit) {
                return static_cast<float>(static_cast<double>(logit - results[i].max_logit) -
                                          log_sum);
            };
            sampled.logprob = logprob(results[i].logit);
            for (size_t j = first; j < first + num_top; ++j)
                logprobs_[j] = {top[j].token, logprob(top[j].logit)};
            sampled.top = std::span<const RankedLogprob>(logprobs_).subspan(first, num_top);
        }
        sampled_.push_back(sampled);
    }
    return sampled_;
}

}  // namespace ferry
