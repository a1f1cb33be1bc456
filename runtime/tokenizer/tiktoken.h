// Kimi's and Moonlight's `tiktoken.model`: on each line a token in base64 and its rank, which is
// its id. How text is split and which tokens are special stands in tokenization_kimi.py or
// tokenization_moonshot.py, programs that split alike, and in tokenizer_config.json.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/json_read.h"

namespace ferry::tok {

// Whether tokenizer_config.json names the TikTokenTokenizer of one of them; others split otherwise.
bool is_kimi_config(const Json& config);

// By id, written as in tokenizer.json (byte_level.h). Throws Error(checkpoint).
std::vector<std::string> read_tiktoken(std::string_view text, const Where& where);

// What tokenizer.json would hold beside the model (pre_tokenizer, decoder, added_tokens) of a file
// of `num_tokens`; is_kimi_config(config). Throws Error(checkpoint).
Json kimi_components(const Json& config, size_t num_tokens, const Where& where);

}  // namespace ferry::tok
