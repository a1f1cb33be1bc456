// The checks of `ferry doctor`. Facts come from the operating system; what they mean is decided by
// functions of the facts alone, which tests can feed.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/launcher.h"
#include "launch/doctor.h"
#include "launch/gpu_facts.h"

namespace ferry {

// What the launcher and the batch system told this task. `num_ranks`: of the MPI world, 0 when
// there is none because every task became a world of its own.
Finding launcher_finding(const GetEnv& get, int num_ranks);

struct CoreFacts {
    int own = 1;                       // of this rank (World::own_cores)
    int allowed = 1;                   // that it may run on
    std::optional<double> quota = {};  // of CPU time, in cores (cgroup_cpu_quota)
    int of_host = 1;                   // that the machine has
    int ranks_on_host = 1;
    int cpus_per_task = 0;  // that Slurm was asked for, 0: not said
};
Finding core_finding(const CoreFacts& facts);

// Bytes; RLIM_INFINITY is unlimited. `remote_memory`: there are network devices (RDMA) or GPUs
// that need locked memory.
struct LimitFacts {
    uint64_t memlock = 0, open_files = 0, stack = 0, core_file = 0;
    bool remote_memory = false;
    int num_ranks = 1;
};
LimitFacts limit_facts(int num_ranks);
std::vector<Finding> limit_findings(const LimitFacts& facts);

struct MemoryFacts {
    int64_t total = 0, available = 0;     // of the host, bytes
    std::optional<int64_t> cgroup_limit;  // of this job
    int64_t shared = 0, shared_free = 0;  // /dev/shm
    std::string huge_pages;               // of transparent_hugepage/enabled: "madvise"
};
MemoryFacts memory_facts();
std::vector<Finding> memory_findings(const MemoryFacts& facts);

Finding cpu_finding();

// `transports`: of UCX, "tcp/eth0"; `rdma_devices`: of the kernel, "mlx5_0".
Finding ucx_finding(const std::string& version, const std::vector<std::string>& transports,
                    const std::vector<std::string>& rdma_devices);
std::vector<std::string> rdma_devices();

// `built_cuda`, `built_nccl`: versions that are built in, empty: not.
std::vector<Finding> gpu_findings(const GpuFacts& facts, const std::string& built_cuda,
                                  const std::string& built_nccl, int ranks_on_host,
                                  const GetEnv& get);

// Writes and reads `size_mib` in a file of its own in `dir`, and an HDF5 file.
std::vector<Finding> file_findings(const std::string& dir, int size_mib, const std::string& host);

}  // namespace ferry
