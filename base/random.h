// Counter-based random numbers: the value depends on (key, counter) only, never on who asked
// before.
#pragma once
#include <array>
#include <cstdint>

namespace ferry {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

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
