// How the emulated machine behaves, read from the environment once.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace cuda_emulation {

struct Options {
    // CUDA_EMULATION_SEED: not 0: random order of threads, warps and blocks.
    uint64_t seed = 0;
    // CUDA_EMULATION_LATE: streams do their work only when somebody waits for it, and the host
    // cannot touch device memory.
    bool late = false;
    int num_devices = 1;                        // CUDA_EMULATION_DEVICES
    int capability = 90;                        // CUDA_EMULATION_CAPABILITY: 80, 90
    uint64_t memory_bytes = uint64_t{8} << 30;  // CUDA_EMULATION_MEMORY_BYTES, per device
};

inline const Options& options() {
    static const Options options = [] {
        const auto number = [](const char* name, uint64_t otherwise) {
            const char* text = std::getenv(name);
            return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
        };
        Options o;
        o.seed = number("CUDA_EMULATION_SEED", o.seed);
        o.late = number("CUDA_EMULATION_LATE", 0) != 0;
        o.num_devices = static_cast<int>(number("CUDA_EMULATION_DEVICES", 1));
        o.capability = static_cast<int>(number("CUDA_EMULATION_CAPABILITY", 90));
        o.memory_bytes = number("CUDA_EMULATION_MEMORY_BYTES", o.memory_bytes);
        return o;
    }();
    return options;
}

}  // namespace cuda_emulation
