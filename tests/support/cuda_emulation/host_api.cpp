// The host side of the emulated machine: memory, streams, events (graphs.cpp: graphs). A stream is
// a queue of things to do; unless options().late it is emptied at once.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "counts.h"
#include "cuda_runtime.h"
#include "fiber.h"
#include "host_calls.h"
#include "options.h"
#include "streams.h"

namespace {

using namespace cuda_emulation;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

// All device memory: one reserved range, so that it can be closed to the host as a whole. Blocks
// are set apart, and filled with a pattern that is no sensible number.
class DeviceMemory {
  public:
    DeviceMemory() {
        size_ = static_cast<size_t>(options().memory_bytes) *
                static_cast<size_t>(options().num_devices);
        void* data = mmap(nullptr, size_, options().late ? PROT_NONE : PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (data == MAP_FAILED) fail("cannot reserve device memory");
        begin_ = static_cast<std::byte*>(data);
        madvise(data, size_, MADV_HUGEPAGE);  // closing and opening it is quick
    }

    void* allocate(int device, size_t size) {
        size_t& used = used_[device];
        const size_t rounded = (size + kApart - 1) / kApart * kApart + kApart;
        if (used + rounded > options().memory_bytes) return nullptr;
        std::byte* at = nullptr;
        const auto free_block = free_.lower_bound({rounded, nullptr});
        if (free_block != free_.end() && free_block->first < 2 * rounded) {
            at = free_block->second;
            blocks_[at] = {size, free_block->first, device};
            free_.erase(free_block);
        } else {
            if (end_ + rounded > size_) return nullptr;
            at = begin_ + end_;
            end_ += rounded;
            blocks_[at] = {size, rounded, device};
        }
        used += blocks_[at].reserved;
        open();
#if CUDA_EMULATION_ASAN
        ASAN_POISON_MEMORY_REGION(at, blocks_[at].reserved);
        ASAN_UNPOISON_MEMORY_REGION(at, size);
#endif
        std::memset(at, 0xff, size);
        close();
        return at;
    }
    bool free(void* data) {
        const auto block = blocks_.find(static_cast<std::byte*>(data));
        if (block == blocks_.end()) return false;
#if CUDA_EMULATION_ASAN
        ASAN_POISON_MEMORY_REGION(data, block->second.reserved);
#endif
        used_[block->second.device] -= block->second.reserved;
        free_.insert({block->second.reserved, block->first});
        blocks_.erase(block);
        return true;
    }
    size_t used(int device) {
        return used_[device];
    }
    bool contains(const void* data) const {
        return data >= begin_ && data < begin_ + size_;
    }

    void open() {
        if (options().late && depth_++ == 0) protect(PROT_READ | PROT_WRITE);
    }
    void close() {
        if (options().late && --depth_ == 0) protect(PROT_NONE);
    }

  private:
    static constexpr size_t kApart = 512;
    struct Block {
        size_t size, reserved;
        int device;
    };
    void protect(int protection) {
        constexpr size_t kHugePage = size_t{2} << 20;
        if (end_ > 0)
            mprotect(begin_, std::min(size_, (end_ + kHugePage - 1) / kHugePage * kHugePage),
                     protection);
    }

    std::byte* begin_;
    size_t size_, end_ = 0;
    int depth_ = 0;
    std::map<std::byte*, Block> blocks_;
    std::set<std::pair<size_t, std::byte*>> free_;
    std::map<int, size_t> used_;
};

DeviceMemory& memory() {
    static DeviceMemory* memory = new DeviceMemory;  // outlives every static that frees
    return *memory;
}

}  // namespace

void cuda_emulation::fail(const std::string& what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}
cudaError_t cuda_emulation::result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}
std::recursive_mutex& cuda_emulation::lock() {
    static std::recursive_mutex mutex;
    return mutex;
}

cudaError_t CUstream_st::submit(Work work) {
    if (capture != nullptr) {
        if (capture->broken) return result(cudaErrorStreamCaptureInvalidated);
        capture->add(*this, std::move(work));
        return cudaSuccess;
    }
    queue.push_back(std::move(work));
    if (!options().late) drain();
    return cudaSuccess;
}
void CUstream_st::step() {
    const Work work = std::move(queue.front());
    queue.pop_front();
    memory().open();
    work();
    memory().close();
}
void CUstream_st::drain() {
    memory().open();
    while (!queue.empty()) step();
    memory().close();
}

void CUevent_st::wait_for(uint64_t number) const {
    while (done < number) {
        if (stream->queue.empty()) fail("an event that nobody will complete");
        stream->step();
    }
}

std::set<CUstream_st*>& cuda_emulation::streams() {
    static auto* all = new std::set<CUstream_st*>;
    return *all;
}

// The legacy default stream: everything before it is done first.
CUstream_st& cuda_emulation::stream_of(cudaStream_t stream) {
    static CUstream_st* legacy = [] {
        streams().insert(new CUstream_st);
        return *streams().begin();
    }();
    return stream == nullptr ? *legacy : *stream;
}

namespace {

void drain_all() {
    for (CUstream_st* stream : streams()) stream->drain();
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
    const Guard guard(lock());
    if (stream == nullptr)
        if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    const cudaError_t submitted = stream_of(stream).submit(std::move(work));
    if (stream == nullptr) drain_all();
    return submitted;
}

Counts& counted() {
    static Counts counts;
    return counts;
}

// Asynchronous copies read pageable host memory before they return.
bool is_pinned_or_device(const void* data);

std::map<const std::byte*, size_t>& pinned() {
    static auto* all = new std::map<const std::byte*, size_t>;
    return *all;
}

bool is_pinned_or_device(const void* data) {
    if (memory().contains(data)) return true;
    const auto* at = static_cast<const std::byte*>(data);
    auto block = pinned().upper_bound(at);
    if (block == pinned().begin()) return false;
    --block;
    return at < block->first + block->second;
}

}  // namespace

// ---- Errors and devices
const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
           : error == cudaErrorInvalidDevice  ? "cudaErrorInvalidDevice"
                                              : "cudaError";
}
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureUnjoined:
            return "capturing stream has unjoined work";
        case cudaErrorStreamCaptureIsolation:
            return "dependency created on uncaptured work in another stream";
        case cudaErrorCapturedEvent:
            return "operation not permitted on an event last recorded in a capturing stream";
        default:
            return "invalid argument";
    }
}
cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
    return last_error;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = options().num_devices;
    return result(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= options().num_devices) return result(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device < 0 || device >= options().num_devices) return result(cudaErrorInvalidDevice);
    *p = {};
    std::snprintf(p->name, sizeof(p->name), "emulated GPU");
    p->totalGlobalMem = options().memory_bytes;
    p->major = options().capability / 10;
    p->minor = options().capability % 10;
    p->multiProcessorCount = 132;
    p->sharedMemPerBlockOptin = 227 << 10;
    p->pciBusID = device + 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess) return cudaErrorInvalidDevice;
    *value = attribute == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
             : attribute == cudaDevAttrComputeCapabilityMajor ? p.major
             : attribute == cudaDevAttrComputeCapabilityMinor
                 ? p.minor
                 : static_cast<int>(p.sharedMemPerBlockOptin);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
    std::snprintf(text, static_cast<size_t>(size), "0000:%02X:00.0", device + 1);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    drain_all();
    return cudaSuccess;
}

// ---- Memory
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    const Guard guard(lock());
    *total_bytes = options().memory_bytes;
    *free_bytes = *total_bytes - memory().used(current_device);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, size_t size) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    *data = size == 0 ? nullptr : memory().allocate(current_device, size);
    return result(size > 0 && *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaFree(void* data) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    drain_all();
    if (data == nullptr) return cudaSuccess;
    return result(memory().free(data) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostAlloc(void** data, size_t size, unsigned) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    *data = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    std::memset(*data, 0xff, size);
    pinned()[static_cast<std::byte*>(*data)] = size;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t size) {
    return cudaHostAlloc(data, size, 0);
}
cudaError_t cudaFreeHost(void* data) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    drain_all();
    pinned().erase(static_cast<std::byte*>(data));
    std::free(data);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind, nullptr);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    const Guard guard(lock());
    const bool to_device = memory().contains(to), from_device = memory().contains(from);
    if ((kind == cudaMemcpyHostToDevice && (!to_device || from_device)) ||
        (kind == cudaMemcpyDeviceToHost && (to_device || !from_device)) ||
        (kind == cudaMemcpyDeviceToDevice && !(to_device && from_device)))
        fail("a copy whose direction is not what its addresses say");
    const bool pageable = !is_pinned_or_device(to) || !is_pinned_or_device(from);
    if (pageable && stream_of(stream).capture != nullptr)
        return refuse_if_capturing(stream_of(stream));
    const bool to_host = from_device && !to_device;
    const cudaError_t submitted = enqueue(stream, [=] {
        if (to_host) {
            ++counted().copies_to_host;
            counted().bytes_to_host += static_cast<int64_t>(width * height);
        }
        for (size_t row = 0; row < height; ++row)
            if (width > 0)
                std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                            static_cast<const std::byte*>(from) + row * from_pitch, width);
    });
    if (pageable) stream_of(stream).drain();
    return submitted;
}
cudaError_t cudaMemset(void* data, int value, size_t size) {
    return cudaMemsetAsync(data, value, size, nullptr);
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t size, cudaStream_t stream) {
    return enqueue(stream, [=] {
        if (size > 0) std::memset(data, value, size);
    });
}

// ---- Streams and events
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    const Guard guard(lock());
    *stream = new CUstream_st;
    streams().insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const Guard guard(lock());
    stream->drain();
    streams().erase(stream);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_if_capturing(stream_of(stream)); refused != cudaSuccess)
        return refused;
    stream_of(stream).drain();
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const Guard guard(lock());
    if (const cudaError_t refused = refuse_if_capturing(stream_of(stream)); refused != cudaSuccess)
        return refused;
    if (stream_of(stream).queue.empty()) return cudaSuccess;
    stream_of(stream).step();  // time passes
    return cudaErrorNotReady;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* argument) {
    return enqueue(stream, [=] { function(argument); });
}
void cuda_emulation_submit(CUstream_st* stream, void (*function)(void*), void* argument) {
    cudaLaunchHostFunc(stream, function, argument);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const Guard guard(lock());
    if (event->stream != nullptr) event->stream->drain();
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const Guard guard(lock());
    CUstream_st& in = stream_of(stream);
    event->capture = in.capture;
    event->after = in.after;
    if (in.capture != nullptr) return cudaSuccess;
    event->stream = &in;
    const uint64_t number = ++event->recorded;
    return enqueue(stream, [event, number] {
        event->done = number;
        event->time = std::chrono::steady_clock::now();
    });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const Guard guard(lock());
    if (event->capture != nullptr) return result(cudaErrorCapturedEvent);
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    event->wait_for(event->recorded);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Guard guard(lock());
    if (event->capture != nullptr) return result(cudaErrorCapturedEvent);
    if (const cudaError_t refused = refuse_in_capture(); refused != cudaSuccess) return refused;
    if (event->done >= event->recorded) return cudaSuccess;
    event->stream->step();  // time passes
    return event->done >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    const Guard guard(lock());
    if (begin->capture != nullptr || end->capture != nullptr) return result(cudaErrorCapturedEvent);
    if (begin->done < begin->recorded || end->done < end->recorded) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

Counts cuda_emulation::counts() {
    const Guard guard(lock());
    return counted();
}
void cuda_emulation::count_graph(size_t num_nodes) {
    counted().graph_nodes += static_cast<int64_t>(num_nodes);
}
void cuda_emulation::count_graph_launch() {
    ++counted().graph_launches;
}

// ---- Launches
namespace {

std::map<const void*, size_t>& shared_limits() {
    static auto* all = new std::map<const void*, size_t>;
    return *all;
}

}  // namespace

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
    const Guard guard(lock());
    if (value > 227 << 10) return result(cudaErrorInvalidValue);
    shared_limits()[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char** name, const void*) {
    *name = "an emulated kernel";
    return cudaSuccess;
}

void cuda_emulation::submit(cudaStream_t stream, std::function<void()> work) {
    enqueue(stream, std::move(work));
}

cudaError_t cuda_emulation::launch(const cudaLaunchConfig_t& config, const void* kernel,
                                   std::function<void()> body) {
    const Guard guard(lock());
    const dim3 grid = config.gridDim, block = config.blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const auto limit = shared_limits().find(kernel);
    // 48 KiB unasked for, less what the kernel declares itself: taken to be up to 1 KiB.
    const size_t shared_limit = limit == shared_limits().end() ? 47 << 10 : limit->second;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535 || threads == 0 || threads > 1024 || block.z > 64 ||
        config.dynamicSmemBytes > shared_limit)
        return result(cudaErrorInvalidConfiguration);
    if (stream_of(config.stream).capture == nullptr) ++counted().kernel_launches;
    return enqueue(config.stream, [=, shared_bytes = config.dynamicSmemBytes] {
        run_grid(grid, block, shared_bytes, body);
    });
}
