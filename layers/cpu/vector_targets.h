// The instruction sets that kernels are compiled for. Included before any header of Highway.
//
// One is chosen at run time: AVX2 + FMA, AVX-512 or NEON. The scalar one is Highway's baseline on
// x86; it serves as a second vector width in tests, and Ferry refuses to start where it would be
// chosen. Vectors of unknown size (SVE) cannot be kept in arrays, so NEON serves those machines.
#pragma once

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
    (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
