#include "base/random.h"

#include <cmath>
#include <numbers>

namespace ferry {

uint32_t Random::next_u32() {
    if (left_ == 0) {
        block_ = philox4x32(
            {static_cast<uint32_t>(counter_), static_cast<uint32_t>(counter_ >> 32), 0, 0},
            {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
        ++counter_;
        left_ = 4;
    }
    return block_[4 - left_--];
}

float Random::next_normal() {
    const float u = (static_cast<float>(next_u32() >> 8) + 1.0f) * 0x1p-24f;
    const float v = next_uniform();
    return std::sqrt(-2.0f * std::log(u)) * std::cos(2.0f * std::numbers::pi_v<float> * v);
}

}  // namespace ferry
