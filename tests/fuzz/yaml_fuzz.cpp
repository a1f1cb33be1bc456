// Any bytes as YAML: a configuration, a model's shape, and overrides of both kinds of value.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/config.h"
#include "runtime/model_shape.h"

namespace {

template <typename Fn>
void run(Fn&& fn) {
    try {
        fn();
    } catch (const ferry::Error&) {  // what hostile input must end in
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace ferry;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    run([&] { parse_model_shape(text, "fuzz.yaml"); });
    run([&] {
        const Config config = parse_config(text, "fuzz.yaml");
        // What it prints must read back to the same.
        const std::string effective = effective_yaml(config);
        if (effective_yaml(parse_config(effective, "effective.yaml")) != effective)
            __builtin_trap();
    });
    run([&] {
        const std::string assignment(text.substr(0, text.find('\n')));
        parse_config({}, "fuzz.yaml", std::span(&assignment, 1));
    });
    return 0;
}
