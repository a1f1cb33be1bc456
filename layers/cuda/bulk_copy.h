// Copies of whole tiles into shared memory that one thread starts (PTX ISA, "Data Movement and
// Conversion Instructions: Tensor copy"), the barriers in shared memory that count their bytes in,
// and the shares of registers that go with warps which have little else to do. sm_90 and later; use
// it where wgmma.h is used.
#pragma once
#include "base/cuda_driver_api.h"
#include "layers/cuda/wgmma.h"

namespace ferry {
using TensorMap = CUtensorMap;  // made by the host: what tensor copies are of
}

#ifndef __CUDACC__
#include "emulated_bulk_copy.h"  // tests/support/cuda_emulation
#elif defined(FERRY_WGMMA)

namespace ferry {

// By one thread, before a barrier of the block: a phase ends when `arrivals` have arrived and all
// bytes that were announced have come. Phases have parity 0, 1, 0, ...
__device__ __forceinline__ void init_arrivals(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and announces bytes of bulk copies.
__device__ __forceinline__ void arrive_with_bytes(uint64_t* barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}
__device__ __forceinline__ void wait_for_arrivals(uint64_t* barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// The box of `map` at column x, row y to 1024-byte aligned shared memory; its bytes arrive at the
// barrier. `map` is a __grid_constant__ parameter.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, int x, int y,
                                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
        "{%2, %3}], [%4];" ::"r"(shared_address(to)),
        "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
        : "memory");
}

// The box into L2 only.
__device__ __forceinline__ void prefetch_box(const TensorMap& map, int x, int y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map),
                 "r"(x), "r"(y)
                 : "memory");
}

// Registers of each thread of this warpgroup from now on: more than the kernel has, or fewer.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ferry

#endif
