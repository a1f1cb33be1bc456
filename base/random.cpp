#include "base/random.h"

#include <cmath>
#include <numbers>

namespace ferry {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
        counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
                   static_cast<uint32_t>(product1),
                   static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
                   static_cast<uint32_t>(product0)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

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
