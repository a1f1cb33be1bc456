// The `post_processor` of tokenizer.json: the special tokens around a text.
// Supported: TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel (which only concerns
// offsets), Sequence.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/tokenizer/json_read.h"

namespace ferry::tok {

struct PostProcessor {
    std::vector<int32_t> prefix;
    std::vector<int32_t> suffix;
};

// Throws Error(checkpoint) for an unsupported type or an id outside [0, num_ids).
PostProcessor make_post_processor(const Json& json, int32_t num_ids, const Where& where);

}  // namespace ferry::tok
