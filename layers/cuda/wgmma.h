// Hopper's tensor cores (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): products of
// M = 64 rows that a warpgroup starts together and waits for later, with B, and A if so wished,
// read from shared memory. A warpgroup is four warps, the first a multiple of four; every thread of
// it calls the same functions.
//
// d of N columns: d[4 j + i] of lane (g = lane / 4, t = lane % 4) of the warpgroup's warp w is row
// 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2; a in registers: rows 16 w ... as mma.h has them.
//
//   wgmma_fence();                        // d and a in registers were written
//   wgmma_bf16<64>(d, a, b, false);       // d = a b, of 16 of k
//   wgmma_bf16<64>(d, a.plus(32), ...);   // d += a b, of the next 16
//   wgmma_commit();                       // a group
//   wgmma_wait<0>();                      // until no group is on its way: d may be read
//
// Only sm_90a has them: code that calls them is inside #ifdef FERRY_WGMMA, and hosts launch its
// kernels where the compute capability is 9.0.
#pragma once
#include "layers/cuda/mma.h"

#ifndef __CUDACC__
#define FERRY_WGMMA
#include "emulated_wgmma.h"  // tests/support/cuda_emulation
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FERRY_WGMMA

namespace ferry {

// A tile in shared memory, in panels 128 bytes wide (64 bf16, 128 fp8) that begin on 1024 bytes: a
// panel's rows follow each other as tile_offset(row, chunk, 128) of tiles.h places them.
struct SharedTile {
    uint64_t bits = 0;  // the "matrix descriptor" of the PTX ISA
    __device__ __forceinline__ SharedTile plus(int bytes) const {
        return {bits + static_cast<uint64_t>(bytes >> 4)};
    }
};

__device__ __forceinline__ SharedTile shared_tile(const std::byte* begin, int panel_bytes) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
    return {static_cast<uint64_t>((shared_address(begin) & 0x3ffff) >> 4) |
            static_cast<uint64_t>(panel_bytes >> 4) << 16 | kEightRows | kSwizzle128};
}
// A tile [m or n, k] whose rows are rows of the panel. The next 16 bf16 or 32 fp8 of k in the same
// panel: plus(32).
__device__ __forceinline__ SharedTile tile_by_rows(const std::byte* panel) {
    return shared_tile(panel, 16);
}
// A bf16 tile [k, n] whose k are rows of the panel; from 64 columns on n goes on in the next panel,
// panel_bytes further on. The next 16 of k: plus(2048).
__device__ __forceinline__ SharedTile tile_by_columns(const std::byte* panel, int panel_bytes) {
    return shared_tile(panel, panel_bytes);
}

// Before the first product of a group: what this thread wrote to registers of d and a is there.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kGroupsLeft of the committed groups are on their way.
template <int kGroupsLeft>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// By every thread that wrote to shared memory (cp.async: once it has been waited for), before the
// barrier after which products read it.
__device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Accumulators [i, i + 8) of d as operands of asm, and the names of as many of them.
#define FERRY_8(i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define FERRY_16(i) FERRY_8(i), FERRY_8(i + 8)
#define FERRY_32(i) FERRY_16(i), FERRY_16(i + 16)
#define FERRY_64(i) FERRY_32(i), FERRY_32(i + 32)
#define FERRY_128(i) FERRY_64(i), FERRY_64(i + 64)
#define FERRY_NAMES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define FERRY_NAMES_16 FERRY_NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define FERRY_NAMES_32 \
    FERRY_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FERRY_NAMES_64                                                 \
    FERRY_NAMES_32                                                     \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
    ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FERRY_NAMES_128                                                            \
    FERRY_NAMES_64                                                                 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"             \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"             \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// The functions below for one N: `sums` = N / 2 accumulators; p0 ... p5: names of the operands that
// come after them.
#define FERRY_WGMMA_OF(columns, sums, p0, p1, p2, p3, p4, p5, p6)                                 \
    template <>                                                                                   \
    struct Wgmma<columns> {                                                                       \
        template <bool kByColumns>                                                                \
        static __device__ __forceinline__ void bf16(float (&d)[sums], SharedTile a, SharedTile b, \
                                                    int accumulate) {                             \
            asm volatile("{.reg .pred p; setp.ne.b32 p, " p2                                      \
                         ", 0;"                                                                   \
                         "wgmma.mma_async.sync.aligned.m64n" #columns                             \
                         "k16.f32.bf16.bf16 {" FERRY_NAMES_##sums "}, " p0 ", " p1                \
                                                                  ", p, 1, 1, 0, " p3 ";}"        \
                         : FERRY_##sums(0)                                                        \
                         : "l"(a.bits), "l"(b.bits), "r"(accumulate), "n"(kByColumns ? 1 : 0));   \
        }                                                                                         \
        template <bool kByColumns>                                                                \
        static __device__ __forceinline__ void bf16(float (&d)[sums], const uint32_t (&a)[4],     \
                                                    SharedTile b, int accumulate) {               \
            asm volatile("{.reg .pred p; setp.ne.b32 p, " p5                                      \
                         ", 0;"                                                                   \
                         "wgmma.mma_async.sync.aligned.m64n" #columns                             \
                         "k16.f32.bf16.bf16 {" FERRY_NAMES_##sums                                 \
                         "}, {" p0 ", " p1 ", " p2 ", " p3 "}, " p4 ", p, 1, 1, " p6 ";}"         \
                         : FERRY_##sums(0)                                                        \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits),               \
                           "r"(accumulate), "n"(kByColumns ? 1 : 0));                             \
        }                                                                                         \
        static __device__ __forceinline__ void e4m3(float (&d)[sums], SharedTile a, SharedTile b, \
                                                    int accumulate) {                             \
            asm volatile("{.reg .pred p; setp.ne.b32 p, " p2                                      \
                         ", 0;"                                                                   \
                         "wgmma.mma_async.sync.aligned.m64n" #columns                             \
                         "k32.f32.e4m3.e4m3 {" FERRY_NAMES_##sums "}, " p0 ", " p1 ", p, 1, 1;}"  \
                         : FERRY_##sums(0)                                                        \
                         : "l"(a.bits), "l"(b.bits), "r"(accumulate));                            \
        }                                                                                         \
    }

template <int kColumns>
struct Wgmma;
FERRY_WGMMA_OF(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14");
FERRY_WGMMA_OF(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22");
FERRY_WGMMA_OF(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38");
FERRY_WGMMA_OF(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70");
FERRY_WGMMA_OF(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134");
#undef FERRY_WGMMA_OF

// d += a b (accumulate) or d = a b, of 16 of k; b: tile_by_rows, or tile_by_columns (kByColumns).
template <int kColumns, bool kByColumns = false>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kColumns / 2], SharedTile a, SharedTile b,
                                           bool accumulate = true) {
    Wgmma<kColumns>::template bf16<kByColumns>(d, a, b, accumulate ? 1 : 0);
}
template <int kColumns, bool kByColumns = false>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kColumns / 2], const uint32_t (&a)[4],
                                           SharedTile b, bool accumulate = true) {
    Wgmma<kColumns>::template bf16<kByColumns>(d, a, b, accumulate ? 1 : 0);
}
// Of 32 of k.
template <int kColumns>
__device__ __forceinline__ void wgmma_e4m3(float (&d)[kColumns / 2], SharedTile a, SharedTile b,
                                           bool accumulate = true) {
    Wgmma<kColumns>::e4m3(d, a, b, accumulate ? 1 : 0);
}

}  // namespace ferry

#endif
