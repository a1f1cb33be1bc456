// A libnvidia-ml.so.1 for machines without a GPU: two devices, the second half full. Signatures as
// in NVIDIA's NVML API reference, so that `ferry doctor`'s use of them is tested.
#include <cstdio>
#include <cstring>

extern "C" {

int nvmlInit_v2() {
    return 0;
}
int nvmlShutdown() {
    return 0;
}
const char* nvmlErrorString(int) {
    return "stand-in error";
}
int nvmlSystemGetDriverVersion(char* version, unsigned length) {
    std::snprintf(version, length, "570.86.15");
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
    *version = 12080;
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 2;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = reinterpret_cast<void*>(static_cast<unsigned long>(index + 1));
    return 0;
}
int nvmlDeviceGetName(void*, char* name, unsigned length) {
    std::snprintf(name, length, "Stand-in GPU");
    return 0;
}
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* total_free_used) {
    const unsigned long long total = 80ull << 30;
    const unsigned long long used = device == reinterpret_cast<void*>(2ul) ? total / 2 : 0;
    total_free_used[0] = total;
    total_free_used[1] = total - used;
    total_free_used[2] = used;
    return 0;
}
}
