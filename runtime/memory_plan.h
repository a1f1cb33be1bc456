// What a rank is about to allocate on its device, before it does.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "runtime/attention_worker.h"

namespace ferry {

struct MemoryPlan {
    struct Part {
        std::string name;
        int64_t size_bytes = 0;
    };
    std::vector<Part> parts;

    int64_t total_bytes() const;
    std::string describe() const;  // "weights 1.50 GiB + latent cache 0.25 GiB = 1.75 GiB"
};

// CUDA's memory for a kernel or copy of a graph, which it does not tell. Seen: 64 KiB with
// CUDA 11.2 (NVIDIA's forum, topic 244901), about 20 KiB with CUDA 13 (24 MiB for a decode step of
// 64 layers, vLLM's issue 50780).
constexpr int64_t kGraphNodeBytes = 24 << 10;

// Of a world rank with these roles. The device's own context and its libraries come on top; what
// NCCL takes when ranks first talk, and CUDA for graphs, is estimated.
MemoryPlan plan_memory(const WeightSource& source, const Numerics& numerics,
                       const FabricOptions& options, int world_rank, const WorkerLimits& limits);

// Throws Error(memory) with the plan when the free memory of `device` ("GPU 0, NVIDIA H100") cannot
// hold it.
void require_room(const MemoryPlan& plan, const std::string& device, size_t free_bytes);

// What a rank takes of its host's memory, and what that host's ranks may take together. Bytes.
struct HostShare {
    int64_t weights = 0, cache = 0, limit = 0;
};

// Throws Error(memory) when the weights of a host's ranks alone are more than these may take.
// Caches are filled by requests only: returns a warning when they may not fit beside the weights,
// or "".
std::string require_room_on_hosts(std::span<const HostShare> by_rank,
                                  std::span<const int> node_of_rank,
                                  std::span<const std::string> host_of_node);

}  // namespace ferry
