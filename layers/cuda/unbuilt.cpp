// Kernels that the CUDA backend does not have yet: each says so.
#include "base/error.h"
#include "layers/cuda/cuda_kernels.h"

namespace ferry {
namespace {

[[noreturn]] void refuse(const char* kernel) {
    throw Error(ErrorKind::usage, "the CUDA backend has no {} yet; use device: cpu", kernel);
}

}  // namespace

Weight CudaKernels::make_weight(const WeightSpec&) {
    refuse("linear layers");
}
int64_t CudaKernels::packed_bytes(const WeightSpec&) const {
    refuse("linear layers");
}
void CudaKernels::pack(Weight&, int64_t, int64_t, const Tensor&, const Tensor*) {
    refuse("linear layers");
}
void CudaKernels::unpack(const Weight&, int64_t, const Tensor&) {
    refuse("linear layers");
}
void CudaKernels::gemm(const Tensor&, const Weight&, const Tensor&, const Tensor*) {
    refuse("gemm");
}
void CudaKernels::grouped_gemm(const Tensor&, std::span<const int64_t>, const Weight&,
                               const Tensor&, const Tensor*) {
    refuse("grouped_gemm");
}
void CudaKernels::head_gemm(const Tensor&, int64_t, const Weight&, const Tensor&) {
    refuse("head_gemm");
}
void CudaKernels::quantise_fp8(const Tensor&, bool, const Tensor&, const Tensor&) {
    refuse("quantise_fp8");
}
void CudaKernels::mla_prefill(const PrefillAttention&) {
    refuse("mla_prefill");
}
void CudaKernels::mla_decode(const DecodeAttention&) {
    refuse("mla_decode");
}
void CudaKernels::gate(const Tensor&, const Tensor*, const GateParams&, const Tensor&,
                       const Tensor&) {
    refuse("gate");
}
void CudaKernels::log_sum_exp(const Tensor&, const Tensor&, std::span<int32_t>) {
    refuse("log_sum_exp");
}

}  // namespace ferry
