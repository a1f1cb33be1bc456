// The `pre_tokenizer` of tokenizer.json: cuts text into the pieces that the model tokenizes alone.
// Supported: Sequence, Split (String or Regex, every behavior, invert), ByteLevel, Digits,
// Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, Metaspace.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "runtime/tokenizer/json_read.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {

// Non-empty pieces of one text, in order.
struct Pieces {
    std::string text;
    std::vector<Span> spans;
    bool is_input_start = true;  // spans[0] stands at the start of the whole input

    std::string_view view(size_t idx) const {
        return std::string_view(text).substr(spans[idx].begin, spans[idx].end - spans[idx].begin);
    }
};

using PreTokenizer = std::function<void(Pieces* pieces)>;

// Throws Error(checkpoint) for an unsupported type.
PreTokenizer make_pretokenizer(const Json& json, const Where& where);

}  // namespace ferry::tok
