// Copies from the emulated GPUs to the host since the process began: for tests of what must stay on
// the device.
#pragma once
#include <cstdint>

namespace cuda_emulation {

struct Copies {
    int64_t num = 0;
    int64_t bytes = 0;
};
Copies copies_to_host();

}  // namespace cuda_emulation
