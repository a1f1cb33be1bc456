// Kernels that the CUDA backend does not have yet: each says so.
#include "base/error.h"
#include "layers/cuda/cuda_kernels.h"

namespace ferry {
namespace {

[[noreturn]] void refuse(const char* kernel) {
    throw Error(ErrorKind::usage, "the CUDA backend has no {} yet; use device: cpu", kernel);
}

}  // namespace

void CudaKernels::mla_prefill(const PrefillAttention&) {
    refuse("mla_prefill");
}
void CudaKernels::mla_decode(const DecodeAttention&) {
    refuse("mla_decode");
}
}  // namespace ferry
