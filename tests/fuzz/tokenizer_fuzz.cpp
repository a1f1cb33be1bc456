// Any bytes as tokenizer.json, or as tokenizer_config.json, a line "---" and tiktoken.model:
// refused with an Error, or a tokenizer that encodes and decodes.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "runtime/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace std::string_view_literals;
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    constexpr std::string_view text =
        "Hello, world! aaaaaaaaaaaaaaaaaaaaaaaab 123 4567\r\n\n  \t你好 e\u0301 👨‍👩‍👧 <s>x</s> \xff\xe4\xbd\0!"sv;
    try {
        constexpr std::string_view line = "\n---\n";
        const size_t end = input.find(line);
        const ferry::Tokenizer tokenizer =
            end == input.npos ? ferry::Tokenizer::from_json(input, "fuzz.json")
                              : ferry::Tokenizer::from_tiktoken(input.substr(end + line.size()),
                                                                input.substr(0, end), "fuzz");
        const std::vector<int32_t> ids = tokenizer.encode(text);
        tokenizer.decode(ids, false);
        ferry::StreamDecoder stream(tokenizer);
        for (const int32_t id : ids) stream.push(id);
        stream.flush();
    } catch (const ferry::Error&) {
    }
    return 0;
}
