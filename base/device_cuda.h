// NVIDIA GPUs. The functions are there in every build: without CUDA there are no devices, and
// asking for one says so.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "base/buffer.h"
#include "base/device.h"

struct CUstream_st;  // CUDA's cudaStream_t and cudaEvent_t are pointers to these
struct CUevent_st;
struct CUgraphExec_st;

namespace ferry {

struct CudaDeviceInfo {
    std::string name;
    std::string pci_bus_id;  // "0000:17:00.0"
    int capability = 0;      // 90 for compute capability 9.0
    int num_multiprocessors = 0;
    size_t free_bytes = 0, total_bytes = 0;
};

// One GPU and the stream on which all its kernels and copies run in order.
class CudaDevice : public Device {
  public:
    DeviceType type() const override { return DeviceType::cuda; }
    virtual int ordinal() const = 0;
    virtual CUstream_st* stream() const = 0;
    // CUDA keeps a current device per thread: every thread that launches kernels calls this first.
    virtual void make_current() const = 0;
    virtual CudaDeviceInfo info() const = 0;
};

// Of a job of several ranks, before its first call of CUDA and its first thread. Else kernels are
// loaded when they are first launched, for which CUDA may wait for all that run: NCCL's among them,
// which wait for other ranks, which may do the same. What the environment says
// (CUDA_MODULE_LOADING) stays.
void load_kernels_at_once();

// Whether code for these architectures, as CMake names them ("80-real 90a-real"), has all kernels
// for GPUs of that capability. Some of those for 9.0 exist in code for 90a alone, and are empty in
// other code that such a GPU takes as well.
bool has_kernels_for(int capability, std::string_view architectures);

// GPUs that this process may use; 0 without a driver, a GPU, or CUDA in the build.
int num_cuda_devices();
// Lives as long as the process. Its copies wait for all work that was given to stream() before.
// Throws Error(usage) when there is no such device or this build has no code for it, and says why.
CudaDevice& cuda_device(int ordinal);

// Host memory that the GPU reads and writes on its own. Throws Error(memory).
Buffer pinned_host_memory(size_t size_bytes);

// Whether work that is given to the device's stream is recorded now instead of done (CudaGraph).
bool is_recording(const CudaDevice& device);

// Work of the device's stream that was recorded once, to be done as often as it is launched: the
// same kernels and copies with the same arguments, so that only what lies in memory may change.
class CudaGraph {
  public:
    // Records what `work` gives to the stream, and to others that wait for it and that it waits for
    // in the end. None of it is done. CUDA refuses meanwhile what a graph cannot hold: the host
    // waiting, memory that comes or goes, events from before. Throws Error(communication), or what
    // `work` throws.
    static CudaGraph record(const CudaDevice& device, const std::function<void()>& work);
    CudaGraph() = default;
    CudaGraph(CudaGraph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
    CudaGraph& operator=(CudaGraph&& other) noexcept {
        std::swap(graph_, other.graph_);
        return *this;
    }
    ~CudaGraph();

    void launch(const CudaDevice& device) const;  // in the order of the device's stream

  private:
    CUgraphExec_st* graph_ = nullptr;
};

// A further stream of the device, next to CudaDevice::stream(). `urgent`: goes first where both
// have work.
class Stream {
  public:
    explicit Stream(const CudaDevice& device, bool urgent = false);
    Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
    Stream& operator=(Stream&& other) noexcept {
        std::swap(stream_, other.stream_);
        return *this;
    }
    ~Stream();

    CUstream_st* get() const { return stream_; }
    void synchronize() const;

  private:
    CUstream_st* stream_ = nullptr;
};

// A point in a stream that the host or another stream can wait for.
class Event {
  public:
    explicit Event(const CudaDevice& device, bool timed = false);
    Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
    Event& operator=(Event&& other) noexcept {
        std::swap(event_, other.event_);
        return *this;
    }
    ~Event();

    void record(CUstream_st* stream);
    bool done() const;                        // true when never recorded
    void synchronize() const;                 // the host waits
    void hold_up(CUstream_st* stream) const;  // what comes next in `stream` waits
    // Both timed and done.
    double seconds_since(const Event& begin) const;
    CUevent_st* get() const { return event_; }

  private:
    CUevent_st* event_ = nullptr;
};

}  // namespace ferry
