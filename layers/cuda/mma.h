// Tensor cores and the copies that feed them, as functions of a warp: the one file with PTX.
//
// Fragments of mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4
// and t = lane % 4, each register holding two bf16 of neighbouring columns, the lower one in the
// low half:
//   A [16 x 16], row-major:  a0 = A[g][2t..], a1 = A[g+8][2t..], a2 = A[g][2t+8..],
//                            a3 = A[g+8][2t+8..]
//   B [16 x 8], by columns:  b0 = B[2t..][g], b1 = B[2t+8..][g]
//   C, D [16 x 8] f32:       c0, c1 = C[g][2t], C[g][2t+1]; c2, c3 = C[g+8][2t], C[g+8][2t+1]
// Eight by eight tiles of 16-bit values for ldmatrix: lane i of each group of eight gives the
// address of row i of a tile (16 bytes, 16-byte aligned); register r then holds tile r's
// [g][2t..] ([2t..][g] when transposed).
#pragma once
#include "base/cuda_api.h"

#ifndef __CUDACC__
#include "emulated_mma.h"  // tests/support/cuda_emulation
#else

namespace ferry {

// d = a b + d
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of f16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* address) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}
__device__ __forceinline__ void load_tiles(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_tiles(uint32_t (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_tiles_transposed(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_tiles_transposed(uint32_t (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory, both 16-byte aligned; zeros unless `valid`. Arrives when
// its group has been waited for (by the thread that asked for it; others need a barrier after).
__device__ __forceinline__ void copy_async(void* to_shared, const void* from, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to_shared)), "l"(__cvta_generic_to_global(from)),
                   "r"(valid ? 16 : 0)
                 : "memory");
}
// Four bytes.
__device__ __forceinline__ void copy_word_async(void* to_shared, const void* from,
                                                bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(to_shared)), "l"(__cvta_generic_to_global(from)),
                   "r"(valid ? 4 : 0)
                 : "memory");
}
// 16 bytes through L1: for what other warps of the multiprocessor copy too.
__device__ __forceinline__ void copy_async_shared(void* to_shared, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to_shared)), "l"(__cvta_generic_to_global(from)),
                   "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kGroupsLeft of this thread's committed groups are on their way.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Barrier `id` (1 to 15) of num_threads threads of the block, whole warps.
__device__ __forceinline__ void named_barrier(int id, int num_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
// Counts in without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int num_threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

}  // namespace ferry

#endif
