// Kernels of a device whose memory the host cannot touch: CPU kernels over memory that is open only
// while one of them runs or a copy goes on. Whoever reads or writes a device's tensor from the host
// ends with a segmentation fault, as with a GPU.
#pragma once
#include <memory>

#include "layers/kernels.h"

namespace ferry {

// Its type is cuda: what matters is that it is not the CPU's.
std::unique_ptr<Kernels> make_guarded_kernels(int num_threads);

}  // namespace ferry
