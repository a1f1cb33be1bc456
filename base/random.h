// Counter-based random numbers: the value depends on (key, counter) only, never on who asked
// before.
#pragma once
#include <array>
#include <cstdint>

namespace ferry {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
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

// Uniform in [0, 1), 24 bits.
constexpr float uniform_f32(uint32_t bits) {
    return static_cast<float>(bits >> 8) * 0x1p-24f;
}

// 64-bit mix (splitmix64 finaliser) to make keys of seeds and ids.
constexpr uint64_t mix64(uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

// A stream of numbers for code that wants "the next one" (dummy weights, tests).
class Random {
  public:
    explicit Random(uint64_t seed) : seed_(seed) {}
    uint32_t next_u32();
    float next_uniform() { return uniform_f32(next_u32()); }
    // Standard normal by Box-Muller.
    float next_normal();

  private:
    uint64_t seed_;
    uint64_t counter_ = 0;
    std::array<uint32_t, 4> block_{};
    int left_ = 0;
};

}  // namespace ferry
