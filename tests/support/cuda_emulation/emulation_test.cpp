// The emulated machine keeps the promises that kernels rely on, and names kernels that break them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "base/cuda_launch.h"
#include "base/error.h"
#include "base/random.h"
#include "layers/cuda/reduce.h"
#include "layers/cuda/tiles.h"
#include "layers/cuda/wgmma.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

// Device memory that the test fills and reads.
template <typename T>
class Memory {
  public:
    explicit Memory(const std::vector<T>& host) : count_(host.size()) {
        check_cuda(cudaMalloc(&data_, count_ * sizeof(T)), "allocate");
        check_cuda(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice),
                   "copy");
    }
    explicit Memory(size_t count) : Memory(std::vector<T>(count)) {}
    ~Memory() { cudaFree(data_); }
    T* get() const { return data_; }
    std::vector<T> values() const {
        std::vector<T> host(count_);
        check_cuda(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
                   "copy");
        return host;
    }

  private:
    T* data_ = nullptr;
    size_t count_;
};

__global__ void reverse_kernel(const int* in, int* out) {
    __shared__ int values[256];
    const unsigned i = threadIdx.x, at = blockIdx.x * blockDim.x;
    values[i] = in[at + i];
    __syncthreads();
    out[at + i] = values[blockDim.x - 1 - i];
}

TEST(CudaEmulation, BlocksShareMemoryAndMeetInBarriers) {
    std::vector<int> in(600), expected(600);
    for (int i = 0; i < 600; ++i) in[static_cast<size_t>(i)] = i;
    for (int i = 0; i < 600; ++i) expected[static_cast<size_t>(i)] = i / 200 * 200 + 199 - i % 200;
    const Memory<int> from(in), to(600);
    launch(reverse_kernel, {.grid = {3}, .block = {200}}, nullptr, from.get(), to.get());
    EXPECT_EQ(to.values(), expected);
}

__global__ void warp_kernel(int* out) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int* mine = out + threadIdx.x * 6;
    mine[0] = __shfl_xor_sync(~0u, lane, 5);
    mine[1] = __shfl_up_sync(~0u, lane, 3);
    mine[2] = __shfl_down_sync(~0u, lane, 1, 8);
    mine[3] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
    mine[4] = __reduce_max_sync(~0u, lane * 7 % 31);
    // Halves of a warp meet on their own.
    mine[5] = lane < 16 ? __reduce_add_sync(0xffffu, lane) : __reduce_add_sync(0xffff0000u, 1);
}

TEST(CudaEmulation, WarpCollectives) {
    const Memory<int> out(64 * 6);
    launch(warp_kernel, {.grid = {1}, .block = {64}}, nullptr, out.get());
    const std::vector<int> got = out.values();
    for (int i = 0; i < 64; ++i) {
        const int lane = i % 32;
        const int* mine = got.data() + i * 6;
        EXPECT_EQ(mine[0], lane ^ 5);
        EXPECT_EQ(mine[1], lane < 3 ? lane : lane - 3);
        EXPECT_EQ(mine[2], lane % 8 == 7 ? lane : lane + 1);
        EXPECT_EQ(static_cast<unsigned>(mine[3]), 0x49249249u);
        EXPECT_EQ(mine[4], 30);
        EXPECT_EQ(mine[5], lane < 16 ? 120 : 16);
    }
}

__global__ void block_sum_kernel(const float* in, float* out) {
    __shared__ float scratch[kWarpThreads];
    out[threadIdx.x] = block_sum(in[threadIdx.x], scratch);
}

TEST(CudaEmulation, BlockSum) {
    for (unsigned threads : {32u, 64u, 256u, 1024u}) {
        std::vector<float> in(threads);
        for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
        const Memory<float> from(in), to(in.size());
        launch(block_sum_kernel, {.grid = {1}, .block = {threads}}, nullptr, from.get(), to.get());
        const float n = static_cast<float>(threads);
        EXPECT_EQ(to.values(), std::vector<float>(in.size(), n * (n - 1) / 2));
    }
}

// D = A B for A [16 x 16] and B [16 x 8], both row-major: by way of cp.async, ldmatrix and mma.
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* d) {
    FERRY_DYNAMIC_SHARED(shared);
    auto* a_tile = reinterpret_cast<uint16_t*>(shared);
    auto* b_tile = a_tile + 16 * 16;
    const unsigned lane = threadIdx.x;
    copy_async(a_tile + lane * 8, a + lane * 8);
    if (lane < 16) copy_async(b_tile + lane * 8, b + lane * 8);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    uint32_t a_fragment[4], b_fragment[2];
    float sums[4] = {};
    load_tiles(a_fragment, a_tile + lane % 16 * 16 + lane / 16 * 8);
    load_tiles_transposed(b_fragment, b_tile + lane % 16 * 8);
    mma_bf16(sums, a_fragment, b_fragment);
    for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

TEST(CudaEmulation, TensorCores) {
    Random random(1);
    std::vector<uint16_t> a(16 * 16), b(16 * 8);
    for (uint16_t& value : a) value = f32_to_bf16(random.next_normal());
    for (uint16_t& value : b) value = f32_to_bf16(random.next_normal());
    const Memory<uint16_t> a_device(a), b_device(b);
    const Memory<float> d(16 * 8);
    launch(mma_kernel, {.grid = {1}, .block = {32}, .shared_bytes = 768}, nullptr, a_device.get(),
           b_device.get(), d.get());
    const std::vector<float> got = d.values();
    for (size_t i = 0; i < 16; ++i)
        for (size_t j = 0; j < 8; ++j) {
            double expected = 0;
            for (size_t k = 0; k < 16; ++k)
                expected += static_cast<double>(bf16_to_f32(a[i * 16 + k])) *
                            static_cast<double>(bf16_to_f32(b[k * 8 + j]));
            EXPECT_EQ(got[i * 8 + j], static_cast<float>(expected)) << i << " " << j;
        }
}

// D [64 x 64] of A [64 x 64] and B, all in panels of 128 bytes: B as [n, k] or [k, n], A from
// shared memory or from registers.
template <bool kByColumns, bool kRegisters>
__global__ void wgmma_kernel(const uint16_t* a, const uint16_t* b, float* d) {
    FERRY_DYNAMIC_SHARED(shared);
    std::byte* const b_panel = shared + 64 * 128;
    for (unsigned i = threadIdx.x; i < 64 * 8; i += 128) {
        const int row = static_cast<int>(i / 8), chunk = static_cast<int>(i % 8);
        copy_async(shared + tile_offset(row, chunk, 128), a + i * 8);
        copy_async(b_panel + tile_offset(row, chunk, 128), b + i * 8);
    }
    commit_copies();
    wait_for_copies<0>();
    fence_async_proxy();
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    float sums[32];
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        const SharedTile b_tile = kByColumns ? tile_by_columns(b_panel, 1024).plus(2048 * k)
                                             : tile_by_rows(b_panel).plus(32 * k);
        if constexpr (kRegisters) {
            uint32_t fragment[4];
            load_a(fragment, shared, 16 * warp, 2 * k, 128, lane);
            wgmma_bf16<64, kByColumns>(sums, fragment, b_tile, k > 0);
        } else {
            wgmma_bf16<64, kByColumns>(sums, tile_by_rows(shared).plus(32 * k), b_tile, k > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; ++i)
        d[(16 * warp + lane / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

TEST(CudaEmulation, TensorCoresOfAWarpgroup) {
    Random random(2);
    std::vector<uint16_t> a(64 * 64), b(64 * 64);
    for (uint16_t& value : a) value = f32_to_bf16(random.next_normal());
    for (uint16_t& value : b) value = f32_to_bf16(random.next_normal());
    const Memory<uint16_t> a_device(a), b_device(b);
    const auto expect = [&](auto kernel, bool by_columns) {
        const Memory<float> d(64 * 64);
        launch(kernel, {.grid = {1}, .block = {128}, .shared_bytes = 2 * 64 * 128}, nullptr,
               a_device.get(), b_device.get(), d.get());
        const std::vector<float> got = d.values();
        for (size_t i = 0; i < 64; ++i)
            for (size_t j = 0; j < 64; ++j) {
                double expected = 0;
                for (size_t k = 0; k < 64; ++k)
                    expected += static_cast<double>(bf16_to_f32(a[i * 64 + k])) *
                                static_cast<double>(
                                    bf16_to_f32(by_columns ? b[k * 64 + j] : b[j * 64 + k]));
                ASSERT_NEAR(got[i * 64 + j], expected, 1e-4) << i << " " << j;
            }
    };
    expect(wgmma_kernel<false, false>, false);
    expect(wgmma_kernel<false, true>, false);
    expect(wgmma_kernel<true, false>, true);
    expect(wgmma_kernel<true, true>, true);
}

__global__ void unwaited_copy_kernel(const int4* from, int4* to) {
    FERRY_DYNAMIC_SHARED(shared);
    auto* tile = reinterpret_cast<int4*>(shared);
    copy_async(tile, from);
    commit_copies();
    copy_async(tile + 1, from + 1);
    commit_copies();
    wait_for_copies<1>();
    to[0] = tile[0];
    to[1] = tile[1];
}

TEST(CudaEmulation, CopiesArriveWhenTheyAreWaitedFor) {
    const Memory<int4> from({{1, 2, 3, 4}, {5, 6, 7, 8}}), to(2);
    launch(unwaited_copy_kernel, {.grid = {1}, .block = {1}, .shared_bytes = 32}, nullptr,
           from.get(), to.get());
    EXPECT_EQ(to.values()[0].w, 4);
    EXPECT_EQ(to.values()[1].w, -1);  // what shared memory is filled with
}

__global__ void divergent_barrier_kernel() {
    if (threadIdx.x < 40) return;
    __syncthreads();
}
__global__ void missing_lane_kernel(int* out) {
    if (threadIdx.x != 3) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
}
__global__ void mixed_operations_kernel(int* out) {
    out[threadIdx.x] = threadIdx.x == 3 ? __any_sync(~0u, 1) : __shfl_sync(~0u, 1, 0);
}

TEST(CudaEmulation, NamesWhatWouldHang) {
    const Memory<int> out(64);
    EXPECT_DEATH(launch(divergent_barrier_kernel, {.grid = {1}, .block = {64}}, nullptr);
                 cudaDeviceSynchronize(), "waits for ever.*thread 0 returned.*__syncthreads");
    EXPECT_DEATH(launch(missing_lane_kernel, {.grid = {1}, .block = {32}}, nullptr, out.get());
                 cudaDeviceSynchronize(), "waits for ever.*__shfl_sync.*thread 3 returned");
    EXPECT_DEATH(launch(mixed_operations_kernel, {.grid = {1}, .block = {32}}, nullptr, out.get());
                 cudaDeviceSynchronize(), "different operations");
}

__global__ void add_one_kernel(int* value) {
    *value += 1;
}

__global__ void double_kernel(int* value) {
    *value *= 2;
}

// Two streams and an event.
struct Streams {
    cudaStream_t main = nullptr, side = nullptr;
    cudaEvent_t event = nullptr;
    Streams() {
        cudaStreamCreateWithFlags(&main, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    }
    ~Streams() {
        cudaEventDestroy(event);
        cudaStreamDestroy(side);
        cudaStreamDestroy(main);
    }
    void begin() const { cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal); }
    void hand_over(cudaStream_t from, cudaStream_t to) const {
        cudaEventRecord(event, from);
        cudaStreamWaitEvent(to, event);
    }
};

TEST(CudaEmulation, GraphsRepeatWhatWasCaptured) {
    const Memory<int> value(1);
    const Streams streams;
    streams.begin();
    launch(add_one_kernel, {}, streams.main, value.get());
    streams.hand_over(streams.main, streams.side);
    launch(double_kernel, {}, streams.side, value.get());
    streams.hand_over(streams.side, streams.main);
    launch(add_one_kernel, {}, streams.main, value.get());
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(streams.main, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph), cudaSuccess);
    EXPECT_EQ(value.values()[0], 0);
    for (int i = 0; i < 3; ++i) cudaGraphLaunch(executable, streams.main);
    cudaStreamSynchronize(streams.main);
    EXPECT_EQ(value.values()[0], 21);  // 0, 3, 9, 21
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
}

TEST(CudaEmulation, CapturesRefuseWhatCudaRefuses) {
    const Memory<int> value(1);
    const Streams streams;
    cudaGraph_t graph = nullptr;
    const auto broken_by = [&](auto&& what, cudaError_t error) {
        streams.begin();
        launch(add_one_kernel, {}, streams.main, value.get());
        EXPECT_EQ(what(), error);
        EXPECT_NE(cudaStreamEndCapture(streams.main, &graph), cudaSuccess);
        EXPECT_EQ(graph, nullptr);
    };
    void* memory = nullptr;
    int host = 0;
    broken_by([&] { return cudaStreamSynchronize(streams.main); },
              cudaErrorStreamCaptureUnsupported);
    broken_by([&] { return cudaStreamSynchronize(streams.side); },
              cudaErrorStreamCaptureUnsupported);
    broken_by([&] { return cudaDeviceSynchronize(); }, cudaErrorStreamCaptureUnsupported);
    broken_by([&] { return cudaMalloc(&memory, 4); }, cudaErrorStreamCaptureUnsupported);
    broken_by([&] { return cudaFree(value.get()); }, cudaErrorStreamCaptureUnsupported);
    broken_by(
        [&] {
            return cudaMemcpyAsync(&host, value.get(), 4, cudaMemcpyDeviceToHost, streams.main);
        },
        cudaErrorStreamCaptureUnsupported);
    cudaEventRecord(streams.event, streams.side);
    broken_by([&] { return cudaStreamWaitEvent(streams.main, streams.event); },
              cudaErrorStreamCaptureIsolation);
    broken_by([&] { return cudaEventQuery(streams.event); }, cudaErrorStreamCaptureUnsupported);
    // Work of another stream that the first one has not waited for.
    broken_by(
        [&] {
            streams.hand_over(streams.main, streams.side);
            launch(add_one_kernel, {}, streams.side, value.get());
            return cudaSuccess;
        },
        cudaSuccess);
    // An event of a capture is no point in time.
    EXPECT_EQ(cudaEventQuery(streams.event), cudaErrorCapturedEvent);
    EXPECT_EQ(cudaEventSynchronize(streams.event), cudaErrorCapturedEvent);
    cudaGetLastError();
    EXPECT_EQ(value.values()[0], 0);
}

TEST(CudaEmulation, RefusesLaunchesThatCudaRefuses) {
    EXPECT_ERROR(launch(divergent_barrier_kernel, {.grid = {1}, .block = {1025}}, nullptr),
                 ErrorKind::communication,
                 "launch an emulated kernel of 1 x 1 x 1 blocks of 1025 threads with 0 bytes");
    EXPECT_THROW(launch(divergent_barrier_kernel, {.grid = {0}, .block = {32}}, nullptr), Error);
    EXPECT_THROW(launch(divergent_barrier_kernel,
                        {.grid = {1}, .block = {32}, .shared_bytes = 300 << 10}, nullptr),
                 Error);
    // What a kernel declares itself counts too, so launch() asks for less than 48 KiB as well.
    const Memory<int> out(64 * 6);
    EXPECT_NO_THROW(launch(warp_kernel, {.grid = {1}, .block = {64}, .shared_bytes = 48 << 10},
                           nullptr, out.get()));
}

}  // namespace
}  // namespace ferry
