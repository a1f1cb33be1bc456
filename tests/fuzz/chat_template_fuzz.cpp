// Any bytes as a chat template: refused with an Error, or rendered.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "runtime/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view source(reinterpret_cast<const char*>(data), size);
    try {
        const ferry::ChatTemplate chat(source, {"<s>", "</s>"}, "fuzz.jinja");
        chat.render({{"system", "Be brief."}, {"user", "Hi 你好 \xe4\xbd"}, {"assistant", "yes"}});
    } catch (const ferry::Error&) {
    }
    return 0;
}
