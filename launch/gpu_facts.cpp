#include "launch/gpu_facts.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <filesystem>

namespace ferry {
namespace {

// The part of NVML's interface that is used here (NVIDIA's NVML API reference).
constexpr int kSuccess = 0;
using Device = void*;
struct Memory {
    unsigned long long total, free, used;
};

using Library = void*;

// Stays open: these libraries leave threads and handlers behind, which must find their code.
Library open_library(const char* name) {
    return ::dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

template <typename Function>
Function* find(Library library, const char* name) {
    return reinterpret_cast<Function*>(::dlsym(library, name));
}

void ask_nvml(Library nvml, GpuFacts& facts) {
    const auto init = find<int()>(nvml, "nvmlInit_v2");
    const auto shutdown = find<int()>(nvml, "nvmlShutdown");
    const auto error_string = find<const char*(int)>(nvml, "nvmlErrorString");
    const auto driver = find<int(char*, unsigned)>(nvml, "nvmlSystemGetDriverVersion");
    const auto cuda = find<int(int*)>(nvml, "nvmlSystemGetCudaDriverVersion_v2");
    const auto count = find<int(unsigned*)>(nvml, "nvmlDeviceGetCount_v2");
    const auto device = find<int(unsigned, Device*)>(nvml, "nvmlDeviceGetHandleByIndex_v2");
    const auto name = find<int(Device, char*, unsigned)>(nvml, "nvmlDeviceGetName");
    const auto memory = find<int(Device, Memory*)>(nvml, "nvmlDeviceGetMemoryInfo");
    if (!init || !shutdown || !error_string || !driver || !cuda || !count || !device || !name ||
        !memory) {
        facts.problem = "libnvidia-ml.so.1 is too old";
        return;
    }
    if (const int status = init(); status != kSuccess) {
        facts.problem = error_string(status);
        return;
    }
    char text[128] = {};
    if (driver(text, sizeof text) == kSuccess) facts.driver = text;
    cuda(&facts.cuda_version);
    unsigned num_devices = 0;
    count(&num_devices);
    for (unsigned i = 0; i < num_devices; ++i) {
        Device handle = nullptr;
        Memory bytes{};
        if (device(i, &handle) != kSuccess || name(handle, text, sizeof text) != kSuccess ||
            memory(handle, &bytes) != kSuccess) {
            facts.problem = fmt::format("GPU {} does not answer", i);
            continue;
        }
        facts.gpus.push_back({.name = text,
                              .total_bytes = static_cast<int64_t>(bytes.total),
                              .used_bytes = static_cast<int64_t>(bytes.used)});
    }
    shutdown();
}

std::string nccl_version() {
    const Library nccl = open_library("libnccl.so.2");
    if (nccl == nullptr) return "";
    const auto get = find<int(int*)>(nccl, "ncclGetVersion");
    int version = 0;
    if (!get || get(&version) != 0) return "";
    return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace

GpuFacts gpu_facts() {
    GpuFacts facts;
    std::error_code ignored;
    facts.has_driver = std::filesystem::exists("/proc/driver/nvidia/version", ignored) ||
                       std::filesystem::exists("/dev/nvidiactl", ignored);
    if (const Library nvml = open_library("libnvidia-ml.so.1"))
        ask_nvml(nvml, facts);
    else if (facts.has_driver)
        facts.problem = "the driver's libnvidia-ml.so.1 is not found";
    if (facts.has_driver || !facts.gpus.empty()) facts.nccl = nccl_version();
    return facts;
}

}  // namespace ferry
