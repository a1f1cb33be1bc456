// [13] From the logits of a step to tokens: chosen where the logits lie, on the GPU or on the host,
// which gives the same tokens (runtime/sampler.h).
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "comm/staging.h"
#include "layers/kernels.h"
#include "runtime/sampler.h"

namespace ferry {

class TokenChooser {
  public:
    // For at most max_rows rows at once. Allocates all that choosing needs, but for lists of most
    // likely tokens. `kernels` must outlive the chooser.
    TokenChooser(Kernels& kernels, int64_t vocab_size, int64_t max_rows);

    // logits: [rows, vocab] f32 in the memory of the kernels' device; input(i) is about row i, its
    // own `logits` are not looked at; nothing: no token is wanted of it. Calls take(i, token) for
    // the others in order, on the host before it asks for the next input: a row may come to be
    // unwanted by what is chosen of one before. Of a GPU's logits only the tokens and their
    // log-probabilities are copied to the host, unless its kernels do not sample; there all tokens
    // are chosen first.
    using Input = std::function<std::optional<SampleInput>(size_t)>;
    using Take = std::function<void(size_t, const SampledToken&)>;
    void choose(const Tensor& logits, const Input& input, const Take& take);

  private:
    void choose_on_device(const Tensor& logits, const Input& input, const Take& take);

    Sampler sampler_;
    HostView host_logits_;
    std::unique_ptr<DeviceSampler> device_sampler_;  // null: on the host
    std::vector<SampleRow> rows_;
    std::vector<TokenLogprob> top_;
};

}  // namespace ferry
