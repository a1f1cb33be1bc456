// The `normalizer` of tokenizer.json: what is done to text before it is split.
// Supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Replace, Prepend,
// ByteLevel.
#pragma once
#include <functional>
#include <string>

#include "runtime/tokenizer/json_read.h"

namespace ferry::tok {

using Normalizer = std::function<void(std::string* text)>;

// Throws Error(checkpoint) for an unsupported type.
Normalizer make_normalizer(const Json& json, const Where& where);

}  // namespace ferry::tok
