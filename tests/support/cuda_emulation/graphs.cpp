// Captures and graphs of the emulated machine. A graph keeps who comes after whom, and with a seed
// its nodes take their turns in any order that this allows. What CUDA forbids during a capture is
// refused with CUDA's errors and breaks the capture.
#include <algorithm>
#include <random>

#include "host_calls.h"
#include "options.h"
#include "streams.h"

using cuda_emulation::Capture;
using cuda_emulation::GraphNode;
using cuda_emulation::Guard;
using cuda_emulation::lock;
using cuda_emulation::options;
using cuda_emulation::result;

namespace {

using Nodes = std::shared_ptr<const std::vector<GraphNode>>;

std::vector<std::shared_ptr<Capture>>& captures() {
    static auto* all = new std::vector<std::shared_ptr<Capture>>;  // in progress
    return *all;
}

// What the origin has waited for, itself included.
std::set<size_t> ancestors(const std::vector<GraphNode>& nodes, std::vector<size_t> open) {
    std::set<size_t> found;
    while (!open.empty()) {
        const size_t node = open.back();
        open.pop_back();
        if (found.insert(node).second)
            open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
    }
    return found;
}

void run(const std::vector<GraphNode>& nodes) {
    static std::mt19937_64 random(options().seed);
    std::vector<size_t> num_missing(nodes.size()), ready;
    std::vector<std::vector<size_t>> followers(nodes.size());
    for (size_t i = 0; i < nodes.size(); ++i) {
        num_missing[i] = nodes[i].after.size();
        for (size_t before : nodes[i].after) followers[before].push_back(i);
        if (num_missing[i] == 0) ready.push_back(i);
    }
    while (!ready.empty()) {
        const auto next = options().seed == 0
                              ? std::min_element(ready.begin(), ready.end())
                              : ready.begin() + static_cast<long>(random() % ready.size());
        const size_t node = *next;
        ready.erase(next);
        nodes[node].work();
        for (size_t follower : followers[node])
            if (--num_missing[follower] == 0) ready.push_back(follower);
    }
}

}  // namespace

struct CUgraph_st {
    Nodes nodes;
};
struct CUgraphExec_st {
    Nodes nodes;
};

void Capture::add(CUstream_st& stream, cuda_emulation::Work work) {
    nodes.push_back({std::move(work), stream.after});
    stream.after = {nodes.size() - 1};
}

cudaError_t cuda_emulation::refuse_in_capture() {
    for (const auto& capture : captures()) {
        if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
        if (capture->mode == cudaStreamCaptureModeThreadLocal &&
            capture->thread != std::this_thread::get_id())
            continue;
        capture->broken = true;
        return result(cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

cudaError_t cuda_emulation::refuse_if_capturing(CUstream_st& stream) {
    if (stream.capture == nullptr) return refuse_in_capture();
    stream.capture->broken = true;
    return result(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const Guard guard(lock());
    CUstream_st& in = cuda_emulation::stream_of(stream);
    if (event->capture != nullptr) {
        if (event->capture->ended) return result(cudaErrorCapturedEvent);
        if (in.capture != nullptr && in.capture != event->capture) {
            in.capture->broken = event->capture->broken = true;
            return result(cudaErrorStreamCaptureMerge);
        }
        if (in.capture == nullptr) in.after.clear();
        in.capture = event->capture;
        in.capture->streams.insert(&in);
        for (size_t node : event->after)
            if (std::find(in.after.begin(), in.after.end(), node) == in.after.end())
                in.after.push_back(node);
        return cudaSuccess;
    }
    if (event->recorded == 0) return cudaSuccess;
    if (in.capture != nullptr) {
        in.capture->broken = true;
        return result(cudaErrorStreamCaptureIsolation);
    }
    return in.submit([event, number = event->recorded] { event->wait_for(number); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const Guard guard(lock());
    if (stream == nullptr || stream->capture != nullptr)
        return result(cudaErrorStreamCaptureUnsupported);
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    static unsigned long long last_id = 0;
    stream->capture->id = ++last_id;
    stream->capture->streams.insert(stream);
    stream->after.clear();
    captures().push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Guard guard(lock());
    *graph = nullptr;
    if (stream == nullptr || stream->capture == nullptr) return result(cudaErrorInvalidValue);
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture->origin != stream) {
        capture->broken = true;
        return result(cudaErrorStreamCaptureUnmatched);
    }
    const std::set<size_t> joined = ancestors(capture->nodes, stream->after);
    bool all_joined = true;
    for (CUstream_st* each : capture->streams) {
        for (size_t node : each->after) all_joined = all_joined && joined.contains(node);
        each->capture = nullptr;
        each->after.clear();
    }
    capture->ended = true;
    std::erase(captures(), capture);
    if (capture->broken) return result(cudaErrorStreamCaptureInvalidated);
    if (!all_joined) return result(cudaErrorStreamCaptureUnjoined);
    *graph =
        new CUgraph_st{std::make_shared<const std::vector<GraphNode>>(std::move(capture->nodes))};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    const Guard guard(lock());
    const auto& capture = cuda_emulation::stream_of(stream).capture;
    *status = capture == nullptr ? cudaStreamCaptureStatusNone
              : capture->broken  ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

unsigned long long cuda_emulation_capture_id(CUstream_st* stream) {
    const Guard guard(lock());
    const auto& capture = cuda_emulation::stream_of(stream).capture;
    return capture == nullptr ? 0 : capture->id;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
    const Guard guard(lock());
    cuda_emulation::count_graph(graph->nodes->size());
    *executable = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    const Guard guard(lock());
    CUstream_st& in = cuda_emulation::stream_of(stream);
    if (in.capture != nullptr) return cuda_emulation::refuse_if_capturing(in);  // no graph in one
    cuda_emulation::count_graph_launch();
    return in.submit([nodes = executable->nodes] { run(*nodes); });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;  // launches that are under way keep what they do
    return cudaSuccess;
}
