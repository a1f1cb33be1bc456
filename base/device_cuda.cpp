#include "base/device_cuda.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>

#include "base/cuda_launch.h"
#include "base/error.h"

namespace ferry {

void check_cuda(cudaError_t result, const char* what) {
    if (result == cudaSuccess) return;
    cudaGetLastError();  // not to be reported again by the next call
    throw Error(result == cudaErrorMemoryAllocation ? ErrorKind::memory : ErrorKind::communication,
                "CUDA: {}: {} ({})", what, cudaGetErrorString(result), cudaGetErrorName(result));
}

void refuse_launch(cudaError_t result, const void* kernel, const LaunchShape& s) {
    const char* name = nullptr;
    if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "a kernel";
    const std::string what = fmt::format(
        "launch {} of {} x {} x {} blocks of {} threads with {} bytes of shared memory", name,
        s.grid.x, s.grid.y, s.grid.z, s.block.x * s.block.y * s.block.z, s.shared_bytes);
    check_cuda(result, what.c_str());
    std::abort();  // there was an error
}

cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
    static std::mutex mutex;
    static std::map<std::pair<int, const void*>, size_t> allowed;
    int device = 0;
    cudaError_t result = cudaGetDevice(&device);
    const std::lock_guard lock(mutex);
    size_t& most = allowed[{device, kernel}];
    if (result != cudaSuccess || bytes <= most) return result;
    result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes));
    if (result == cudaSuccess) most = bytes;
    return result;
}

bool kernels_start_early() {
    static const bool early = [] {
        int device = 0, major = 0, minor = 0;
        check_cuda(cudaGetDevice(&device), "ask for the GPU");
        check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                   "ask for the GPU's capability");
        check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                   "ask for the GPU's capability");
        return 10 * major + minor == 90;
    }();
    return early;
}

namespace {

double gib(size_t bytes) {
    return static_cast<double>(bytes) / (1 << 30);
}

class RealCudaDevice final : public CudaDevice {
  public:
    explicit RealCudaDevice(int ordinal) : ordinal_(ordinal) {
        const CudaDeviceInfo gpu = info();
        if (!has_kernels_for(gpu.capability, FERRY_CUDA_ARCHITECTURES))
            throw Error(ErrorKind::usage,
                        "GPU {} ({}) needs code for sm_90a, and this Ferry was built for {}: "
                        "configure it with 90a-real in CMAKE_CUDA_ARCHITECTURES and without 90, or "
                        "without that setting",
                        ordinal, gpu.name, FERRY_CUDA_ARCHITECTURES);
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream");
    }

    std::string name() const override { return fmt::format("cuda:{}", ordinal_); }
    int ordinal() const override { return ordinal_; }
    CUstream_st* stream() const override { return stream_; }
    void make_current() const override { check_cuda(cudaSetDevice(ordinal_), "use the GPU"); }

    CudaDeviceInfo info() const override {
        make_current();
        cudaDeviceProp properties;
        check_cuda(cudaGetDeviceProperties(&properties, ordinal_), "ask for the GPU's properties");
        CudaDeviceInfo info{.name = properties.name,
                            .pci_bus_id = std::string(13, '\0'),
                            .capability = 10 * properties.major + properties.minor,
                            .num_multiprocessors = properties.multiProcessorCount};
        check_cuda(cudaDeviceGetPCIBusId(info.pci_bus_id.data(), 13, ordinal_), "name the GPU");
        info.pci_bus_id.resize(info.pci_bus_id.find('\0'));
        check_cuda(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "ask for free memory");
        return info;
    }

    void* allocate(size_t size_bytes) override {
        if (size_bytes == 0) return nullptr;
        make_current();
        void* data = nullptr;
        const cudaError_t result = cudaMalloc(&data, size_bytes);
        if (result == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            const CudaDeviceInfo now = info();
            throw Error(ErrorKind::memory,
                        "cannot allocate {:.2f} GiB on GPU {} ({}): {:.2f} of {:.2f} GiB are free; "
                        "use fewer requests, a smaller cache or more ranks",
                        gib(size_bytes), ordinal_, now.name, gib(now.free_bytes),
                        gib(now.total_bytes));
        }
        check_cuda(result, "allocate memory");
        check_cuda(cudaMemsetAsync(data, 0, size_bytes, stream_), "clear memory");
        synchronize();
        return data;
    }
    void free(void* data, size_t) noexcept override {
        if (data == nullptr) return;
        cudaSetDevice(ordinal_);
        cudaFree(data);  // fails when the process ends and CUDA is gone already: nothing is lost
    }
    void copy_from_host(void* device_data, const void* host_data, size_t size_bytes) override {
        copy(device_data, host_data, size_bytes, cudaMemcpyHostToDevice);
    }
    void copy_to_host(void* host_data, const void* device_data, size_t size_bytes) override {
        copy(host_data, device_data, size_bytes, cudaMemcpyDeviceToHost);
    }
    void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "wait for the GPU"); }

  private:
    void copy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind) {
        if (size_bytes == 0) return;
        make_current();
        check_cuda(cudaMemcpyAsync(to, from, size_bytes, kind, stream_), "copy memory");
        synchronize();
    }

    int ordinal_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace

bool has_kernels_for(int capability, std::string_view architectures) {
    if (capability != 90) return true;
    std::istringstream names{std::string(architectures)};
    bool found = false;
    for (std::string name; names >> name;) {
        if (name == "90" || name == "90-real") return false;
        found = found || name.starts_with("90a");
    }
    return found;
}

void load_kernels_at_once() {
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
}

int num_cuda_devices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

CudaDevice& cuda_device(int ordinal) {
    static std::mutex mutex;
    static auto* devices = new std::map<int, std::unique_ptr<RealCudaDevice>>;  // never destroyed
    const std::lock_guard lock(mutex);
    int count = 0;
    const cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess) {
        cudaGetLastError();
        throw Error(ErrorKind::usage,
                    "no GPU can be used: {}; see nvidia-smi, or use engine.device: cpu",
                    cudaGetErrorString(result));
    }
    if (ordinal < 0 || ordinal >= count)
        throw Error(ErrorKind::usage, "GPU {} was asked for, but there are {}", ordinal, count);
    std::unique_ptr<RealCudaDevice>& device = (*devices)[ordinal];
    if (device == nullptr) device = std::make_unique<RealCudaDevice>(ordinal);
    return *device;
}

Buffer pinned_host_memory(size_t size_bytes) {
    if (size_bytes == 0) return {};
    void* data = nullptr;
    if (cudaHostAlloc(&data, size_bytes, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        throw Error(ErrorKind::memory, "cannot pin {:.2f} GiB of host memory for the GPU",
                    gib(size_bytes));
    }
    return Buffer::adopt(data, size_bytes, [data] { cudaFreeHost(data); });
}

bool is_recording(const CudaDevice& device) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(device.stream(), &status), "ask whether a stream records");
    return status != cudaStreamCaptureStatusNone;
}

CudaGraph CudaGraph::record(const CudaDevice& device, const std::function<void()>& work) {
    device.make_current();
    // Of this thread only: others may allocate meanwhile, as NCCL's do.
    check_cuda(cudaStreamBeginCapture(device.stream(), cudaStreamCaptureModeThreadLocal),
               "record a graph");
    cudaGraph_t recorded = nullptr;
    try {
        work();
    } catch (...) {
        cudaStreamEndCapture(device.stream(), &recorded);
        if (recorded != nullptr) cudaGraphDestroy(recorded);
        cudaGetLastError();
        throw;
    }
    check_cuda(cudaStreamEndCapture(device.stream(), &recorded), "record a graph");
    CudaGraph graph;
    const cudaError_t result = cudaGraphInstantiate(&graph.graph_, recorded, 0);
    cudaGraphDestroy(recorded);
    check_cuda(result, "make a graph");
    return graph;
}
CudaGraph::~CudaGraph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}
void CudaGraph::launch(const CudaDevice& device) const {
    device.make_current();
    check_cuda(cudaGraphLaunch(graph_, device.stream()), "launch a graph");
}

Stream::Stream(const CudaDevice& device, bool urgent) {
    device.make_current();
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "ask for stream priorities");
    check_cuda(
        cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, urgent ? greatest : least),
        "create a stream");
}
Stream::~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
}
void Stream::synchronize() const {
    check_cuda(cudaStreamSynchronize(stream_), "wait for a stream");
}

Event::Event(const CudaDevice& device, bool timed) {
    device.make_current();
    check_cuda(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming),
               "create an event");
}
Event::~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
}
void Event::record(CUstream_st* stream) {
    check_cuda(cudaEventRecord(event_, stream), "record an event");
}
bool Event::done() const {
    const cudaError_t result = cudaEventQuery(event_);
    if (result == cudaErrorNotReady) {
        cudaGetLastError();
        return false;
    }
    check_cuda(result, "ask for an event");
    return true;
}
void Event::synchronize() const {
    check_cuda(cudaEventSynchronize(event_), "wait for an event");
}
void Event::hold_up(CUstream_st* stream) const {
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), "let a stream wait");
}
double Event::seconds_since(const Event& begin) const {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "time an event");
    return 1e-3 * milliseconds;
}

}  // namespace ferry
