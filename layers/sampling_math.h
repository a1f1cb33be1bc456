// The arithmetic of sampling that the CPU and the GPU must do alike, bit for bit
// (runtime/sampler.h, layers/cuda/sampling.cu). No header of either side is needed for it.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FERRY_HOST_DEVICE __host__ __device__
#else
#define FERRY_HOST_DEVICE
#endif

namespace ferry {

// A product and a sum that no compiler joins into one rounding.
FERRY_HOST_DEVICE inline float exact_mul(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
FERRY_HOST_DEVICE inline float exact_add(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}
FERRY_HOST_DEVICE inline float float_of_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    return std::bit_cast<float>(bits);
#endif
}
FERRY_HOST_DEVICE inline uint32_t bits_of_float(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    return std::bit_cast<uint32_t>(value);
#endif
}

// exp(x) for x <= 0, to about 1 ulp; 0 below -87. Only additions and multiplications, so the same
// on every machine, and a compiler can vectorise it. Cody-Waite reduction, then the polynomial of
// Cephes' expf.
FERRY_HOST_DEVICE inline float exp_not_positive(float x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float clamped = x < -87.0f ? -87.0f : x;
    const float n = exact_add(exact_add(exact_mul(clamped, 1.44269504088896341f), shift), -shift);
    const float r =
        exact_add(exact_add(clamped, -exact_mul(n, 0.693359375f)), -exact_mul(n, -2.12194440e-4f));
    float p = 1.9875691500e-4f;
    p = exact_add(exact_mul(p, r), 1.3981999507e-3f);
    p = exact_add(exact_mul(p, r), 8.3334519073e-3f);
    p = exact_add(exact_mul(p, r), 4.1665795894e-2f);
    p = exact_add(exact_mul(p, r), 1.6666665459e-1f);
    p = exact_add(exact_mul(p, r), 5.0000001201e-1f);
    const float y = exact_add(exact_add(exact_mul(p, exact_mul(r, r)), r), 1.0f);
    const int32_t exponent = (static_cast<int32_t>(n) + 127) * (1 << 23);
    return x < -87.0f ? 0.0f : exact_mul(y, float_of_bits(static_cast<uint32_t>(exponent)));
}

// The weight of a token, exp((logit - max logit) / temperature), at most 1.
FERRY_HOST_DEVICE inline float token_weight(float logit, float max_logit, float per_temperature) {
    return exp_not_positive(exact_mul(exact_add(logit, -max_logit), per_temperature));
}

// Sums of weights are exact, so that their order does not matter: a weight counts in whole units of
// 2^-40, and those below count nothing. 2^24 tokens cannot overflow.
constexpr float kWeightUnits = 1099511627776.0f;  // 2^40
FERRY_HOST_DEVICE inline uint64_t weight_units(float weight) {
    return static_cast<uint64_t>(static_cast<int64_t>(exact_mul(weight, kWeightUnits)));
}

inline double log_of_units(uint64_t units) {
    return std::log(static_cast<double>(units) / static_cast<double>(kWeightUnits));
}

// The units that better tokens must have for a token to be left out by top_p < 1; at least one, so
// that the best token stays.
FERRY_HOST_DEVICE inline uint64_t units_enough(double top_p, uint64_t total) {
    const double share = top_p * static_cast<double>(total);
    const uint64_t whole = static_cast<uint64_t>(share);
    const uint64_t enough = static_cast<double>(whole) < share ? whole + 1 : whole;
    return enough > 0 ? enough : 1;
}

// The token is the first, in order of id, at which the running sum of units exceeds this.
FERRY_HOST_DEVICE inline uint64_t units_to_draw(double uniform, uint64_t total) {
    const uint64_t target = static_cast<uint64_t>(uniform * static_cast<double>(total));
    return target < total ? target : total - 1;
}

// [0, 1) with 53 bits, of two random words.
FERRY_HOST_DEVICE inline double uniform_f64(uint32_t high, uint32_t low) {
    return static_cast<double>((uint64_t{high} << 21) | (low >> 11)) * 0x1p-53;
}

// Logits as integers in the same order; both zeros are one.
FERRY_HOST_DEVICE inline uint32_t rank_key(float logit) {
    const uint32_t bits = logit == 0.0f ? 0 : bits_of_float(logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

}  // namespace ferry
