// [3] What the configuration's model section names, opened but not loaded: weights to read,
// tokenizer, chat template, and a text that identifies all of it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/kernels.h"
#include "layers/numerics.h"
#include "layers/weight_source.h"
#include "runtime/chat_template.h"
#include "runtime/config.h"
#include "runtime/request_reader.h"
#include "runtime/tokenizer.h"

namespace ferry {

struct OpenedModel {
    std::string name;  // for messages: the path
    std::unique_ptr<WeightSource> source;
    Numerics
        numerics;    // cache_dtype: as it is stored, which may be bf16 where f32 has the same bits
    CpuOptions cpu;  // engine.device: cpu
    int64_t weight_bytes = 0;  // of all tensors
    std::optional<Tokenizer> tokenizer;
    std::optional<ChatTemplate> chat_template;
    std::vector<int32_t> eos_tokens;
    // YAML lines with checksums of whatever the results depend on: weights, tokenizer, template.
    std::string identity;
    std::vector<std::string> warnings;  // for one rank's log, a line each

    // Texts with the tokenizer's own special tokens; messages by the template, which writes them
    // itself. Copies what it needs.
    PromptEncoder prompt_encoder() const;
};

// What the CPU's kernels take of the configuration, for the model and the machine at hand.
CpuOptions cpu_options(const Config& config, const WeightSource& source);

// Reads names, shapes and small files, no weights. Throws Error(usage) when the configuration names
// no model, Error(checkpoint) for one that cannot be used.
OpenedModel open_model(const Config& config);

// Ends of sentence of a Hugging Face folder: eos_token_id of generation_config.json and
// config.json, and eos_token of tokenizer_config.json. Throws Error(checkpoint) for files that are
// no JSON.
std::vector<int32_t> find_eos_tokens(const std::string& folder,
                                     const std::optional<Tokenizer>& tokenizer);

}  // namespace ferry
