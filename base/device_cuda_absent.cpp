// device_cuda.h in a build without CUDA.
#include "base/device_cuda.h"
#include "base/error.h"

namespace ferry {
namespace {

[[noreturn]] void refuse() {
    throw Error(ErrorKind::usage,
                "this Ferry was built without CUDA (nvcc was not found, or -DFERRY_CUDA=OFF); use "
                "engine.device: cpu");
}

}  // namespace

void load_kernels_at_once() {}

int num_cuda_devices() {
    return 0;
}
CudaDevice& cuda_device(int) {
    refuse();
}
Buffer pinned_host_memory(size_t) {
    refuse();
}
bool is_recording(const CudaDevice&) {
    return false;
}
CudaGraph CudaGraph::record(const CudaDevice&, const std::function<void()>&) {
    refuse();
}
CudaGraph::~CudaGraph() = default;
void CudaGraph::launch(const CudaDevice&) const {}
Stream::Stream(const CudaDevice&, bool) {
    refuse();
}
Stream::~Stream() = default;
void Stream::synchronize() const {}
Event::Event(const CudaDevice&, bool) {
    refuse();
}
Event::~Event() = default;
void Event::record(CUstream_st*) {}
bool Event::done() const {
    return true;
}
void Event::synchronize() const {}
void Event::hold_up(CUstream_st*) const {}
double Event::seconds_since(const Event&) const {
    return 0;
}

}  // namespace ferry
