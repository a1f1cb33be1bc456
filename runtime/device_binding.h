// Which GPU each rank of a node computes on.
#pragma once
#include <string>
#include <vector>

#include "comm/world.h"

namespace ferry {

// GPUs are given out to the ranks of a node in turn: rank i of the node computes on GPU i modulo
// their number, of those that the process may see (CUDA_VISIBLE_DEVICES). `num_devices` > 0.
int device_of_rank(int node_rank, int num_devices);

// One line per rank: its host, its GPU, and what that is. Collective: `own` is this rank's device.
struct DeviceTable {
    struct Row {
        std::string host;
        std::string device;  // "GPU 0, NVIDIA H100 80GB HBM3"
        std::string id;      // the same for ranks that share a device: host and PCI bus id
    };
    std::vector<Row> rows;  // by world rank

    std::string describe() const;
    int num_devices() const;  // different ones
    bool one_rank_each() const;
    // Throws Error(usage) that names two ranks of one device and what to do, unless there are none:
    // NCCL refuses such a world.
    void require_one_rank_each() const;
};
DeviceTable gather_device_table(World& world, const std::string& device, const std::string& id);

}  // namespace ferry
