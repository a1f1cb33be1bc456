// AMX on processors without it: while one of these lives, instructions of AMX that end in SIGILL
// are executed in the handler, as Intel's manual describes them. What the manual does not allow
// (shapes that do not fit together, tiles without a shape) is counted as a fault.
#pragma once
#include <cstdint>

namespace ferry {

class AmxEmulation {
  public:
    AmxEmulation();
    ~AmxEmulation();
    AmxEmulation(const AmxEmulation&) = delete;
    AmxEmulation& operator=(const AmxEmulation&) = delete;

    // False where the build has none: nothing is emulated then.
    bool is_built() const { return is_built_; }
    // Of all threads so far. On a processor with AMX: 0.
    static int64_t num_products();
    static int64_t num_faults();
    // Whether the calling thread has tiles with shapes.
    static bool has_shapes();

  private:
    bool is_built_;
};

}  // namespace ferry
