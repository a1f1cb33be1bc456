#include "runtime/token_chooser.h"

namespace ferry {

TokenChooser::TokenChooser(Kernels& kernels, int64_t vocab_size, int64_t max_rows)
    : sampler_(vocab_size),
      host_logits_(kernels.device()),
      device_sampler_(kernels.make_sampler(vocab_size, max_rows)) {
    rows_.reserve(static_cast<size_t>(max_rows));
}

void TokenChooser::choose(const Tensor& logits, std::span<const SampleInput> inputs,
                          const Take& take) {
    FERRY_CHECK(logits.rows() == static_cast<int64_t>(inputs.size()), "{} rows for {} inputs",
                logits.rows(), inputs.size());
    if (inputs.empty()) return;
    if (device_sampler_ != nullptr) return choose_on_device(logits, inputs, take);
    const Tensor rows = host_logits_.of(logits);
    for (size_t i = 0; i < inputs.size(); ++i) {
        SampleInput input = inputs[i];
        input.logits = {rows.row<float>(static_cast<int64_t>(i)), static_cast<size_t>(rows.dim(1))};
        take(i, sampler_.sample(input));
    }
}

void TokenChooser::choose_on_device(const Tensor& logits, std::span<const SampleInput> inputs,
                                    const Take& take) {
    rows_.clear();
    for (const SampleInput& input : inputs)
        rows_.push_back({.row = static_cast<int64_t>(rows_.size()),
                         .temperature = input.params.temperature,
                         .top_p = input.params.top_p,
                         .min_p = input.params.min_p,
                         .repetition_penalty = input.params.repetition_penalty,
                         .top_k = input.params.top_k,
                         .seed = input.params.seed,
                         .id_hash = input.id_hash,
                         .sample = input.sample,
                         .tokens = input.tokens,
                         .num_prompt_tokens = input.num_prompt_tokens,
                         .banned = input.banned,
                         .num_top = input.params.logprobs.value_or(-1)});
    const std::span<const SampledRow> sampled = device_sampler_->sample(logits, rows_);
    for (size_t i = 0; i < sampled.size(); ++i) {
        top_.clear();
        for (const RankedLogprob& each : sampled[i].top) top_.push_back({each.token, each.logprob});
        take(i, {.token = sampled[i].token, .logprob = sampled[i].logprob, .top = top_});
    }
}

}  // namespace ferry
