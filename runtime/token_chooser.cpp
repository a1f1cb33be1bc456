#include "runtime/token_chooser.h"

namespace ferry {

TokenChooser::TokenChooser(Kernels& kernels, int64_t vocab_size, int64_t max_rows)
    : sampler_(vocab_size),
      host_logits_(kernels.device()),
      device_sampler_(kernels.make_sampler(vocab_size, max_rows)) {
    rows_.reserve(static_cast<size_t>(max_rows));
}

void TokenChooser::choose(const Tensor& logits, const Input& input, const Take& take) {
    if (logits.rows() == 0) return;
    if (device_sampler_ != nullptr) return choose_on_device(logits, input, take);
    const Tensor rows = host_logits_.of(logits);
    for (int64_t row = 0; row < rows.rows(); ++row) {
        const auto i = static_cast<size_t>(row);
        std::optional<SampleInput> wanted = input(i);
        if (!wanted) continue;
        wanted->logits = {rows.row<float>(row), static_cast<size_t>(rows.dim(1))};
        take(i, sampler_.sample(*wanted));
    }
}

void TokenChooser::choose_on_device(const Tensor& logits, const Input& input, const Take& take) {
    rows_.clear();
    for (int64_t row = 0; row < logits.rows(); ++row)
        if (const std::optional<SampleInput> wanted = input(static_cast<size_t>(row)))
            rows_.push_back({.row = row,
                             .temperature = wanted->params.temperature,
                             .top_p = wanted->params.top_p,
                             .min_p = wanted->params.min_p,
                             .repetition_penalty = wanted->params.repetition_penalty,
                             .top_k = wanted->params.top_k,
                             .seed = wanted->params.seed,
                             .id_hash = wanted->id_hash,
                             .sample = wanted->sample,
                             .tokens = wanted->tokens,
                             .num_prompt_tokens = wanted->num_prompt_tokens,
                             .banned = wanted->banned,
                             .num_top = wanted->params.logprobs.value_or(-1)});
    if (rows_.empty()) return;
    const std::span<const SampledRow> sampled = device_sampler_->sample(logits, rows_);
    for (size_t i = 0; i < sampled.size(); ++i) {
        top_.clear();
        for (const RankedLogprob& each : sampled[i].top) top_.push_back({each.token, each.logprob});
        take(static_cast<size_t>(rows_[i].row),
             {.token = sampled[i].token, .logprob = sampled[i].logprob, .top = top_});
    }
}

}  // namespace ferry
