// What the NVIDIA driver of this host says. Its libraries are looked for while running, so that a
// build without CUDA can tell too.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ferry {

struct Gpu {
    std::string name;
    int64_t total_bytes = 0, used_bytes = 0;
};

struct GpuFacts {
    bool has_driver = false;  // the kernel's part
    std::string driver;       // "570.86.15"; empty: its library does not answer, see `problem`
    int cuda_version = 0;     // that the driver supports at most: 12080 is 12.8
    std::string nccl;         // version of the library found, "2.28.3"
    std::vector<Gpu> gpus;
    std::string problem;
};

GpuFacts gpu_facts();

}  // namespace ferry
