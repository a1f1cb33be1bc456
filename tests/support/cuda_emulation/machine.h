// The device side of the emulated CUDA machine: threads of a block are fibers of the calling OS
// thread that take turns, blocks run one after another. A thread gives way only where it waits
// (barriers, warp collectives), so kernels see exactly the promises that CUDA makes, and:
//  - a collective that not all threads of its mask reach, or that they reach in different places,
//    ends the process and names it, instead of hanging;
//  - dynamic shared memory starts as NaN, and cp.async data arrives only when it is waited for;
//  - with a seed, threads, warps and blocks take turns in random order, so that missing barriers
//    show as wrong results.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the running thread.
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace cuda_emulation {

constexpr int kWarpSize = 32;
constexpr size_t kMaxPayloadBytes = 128;  // that a lane brings to a collective

extern thread_local int this_lane;  // of the running thread in its warp

// Runs `body` once per thread of the grid, on the calling OS thread.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

void* dynamic_shared_memory();

// What each lane of a collective brought: valid until this lane enters its next collective but one.
class Payloads {
  public:
    explicit Payloads(const std::byte* values) : values_(values) {}
    template <typename T>
    const T& of_lane(int lane) const {
        return *reinterpret_cast<const T*>(values_ + static_cast<size_t>(lane) * kMaxPayloadBytes);
    }

  private:
    const std::byte* values_;
};

// Waits for all lanes of `mask` (those that exist). `operation` must be the same in all of them.
Payloads warp_collective(uint32_t mask, const char* operation, const void* payload, size_t size);
uint32_t existing_lanes();  // of this thread's warp

// bar.sync / bar.arrive on barrier `id`. num_threads 0: the whole block, none of which may have
// returned. sync returns the sum of `value` over the threads that took part.
int barrier_sync(int id, int num_threads, const char* operation, int value = 0);
void barrier_arrive(int id, int num_threads);

// Lets other threads run, in a loop that waits for memory.
void give_way();

// cp.async: the copy is done when its group is waited for. size 0 writes zeros only.
void async_copy(void* to, const void* from, size_t size, size_t padded_size);
void async_copy_commit();
void async_copy_wait(int groups_left);

}  // namespace cuda_emulation
