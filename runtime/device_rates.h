// What a GPU reaches on the two things that bound a step, through the same kernels that steps use.
#pragma once
#include "layers/cpu/rates.h"
#include "layers/kernels.h"

namespace ferry {

// The best of some repetitions each: a copy of 1 GiB, counting bytes read and written, and a bf16
// product of 8192 x 8192 x 8192 including the rounding of its f32 input.
Rates measure_device_rates(Kernels& kernels);

}  // namespace ferry
