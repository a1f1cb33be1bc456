// Streams, events and captures of the emulated machine, for the files that make up its host side.
#pragma once
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_emulation {

using Work = std::function<void()>;

// Work that was recorded instead of done, and what it comes after.
struct GraphNode {
    Work work;
    std::vector<size_t> after;  // earlier nodes
};

// A capture: from cudaStreamBeginCapture to cudaStreamEndCapture.
struct Capture {
    CUstream_st* origin = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    bool broken = false;  // something was done that a capture does not allow
    bool ended = false;
    unsigned long long id = 0;  // 1, 2, ... in the order in which they began
    std::vector<GraphNode> nodes;
    std::set<CUstream_st*> streams;

    void add(CUstream_st& stream, Work work);
};

using Guard = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex& lock();
[[noreturn]] void fail(const std::string& what);
// Kept for cudaGetLastError.
cudaError_t result(cudaError_t error);
CUstream_st& stream_of(cudaStream_t stream);
std::set<CUstream_st*>& streams();
void count_graph_launch();  // counts.h
void count_graph(size_t num_nodes);

// What a capture in progress does not allow: it is broken by it. cudaSuccess when there is none.
cudaError_t refuse_in_capture();
// The same of one stream, for calls that wait for it.
cudaError_t refuse_if_capturing(CUstream_st& stream);

}  // namespace cuda_emulation

struct CUevent_st {
    CUstream_st* stream = nullptr;  // last recorded in
    uint64_t recorded = 0, done = 0;
    std::shared_ptr<cuda_emulation::Capture> capture;  // last recorded in it: no point in time
    std::vector<size_t> after;                         // nodes of it
    std::chrono::steady_clock::time_point time;

    void wait_for(uint64_t number) const;  // until done is as much
};

struct CUstream_st {
    std::deque<cuda_emulation::Work> queue;
    std::shared_ptr<cuda_emulation::Capture> capture;
    std::vector<size_t> after;  // nodes of the capture that the next one comes after

    cudaError_t submit(cuda_emulation::Work work);
    void step();
    void drain();
};
