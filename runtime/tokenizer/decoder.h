// The `decoder` of tokenizer.json: turns tokens back into text.
// Supported: Sequence, ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "runtime/tokenizer/json_read.h"

namespace ferry::tok {

// Rewrites a list of tokens; the text is what the last decoder leaves, joined.
using Decoder = std::function<void(std::vector<std::string>* tokens)>;

// Throws Error(checkpoint) for an unsupported type.
Decoder make_decoder(const Json& json, const Where& where);

}  // namespace ferry::tok
