// main() of tests over CUDA kernels. 77: no GPU can be used, for the reason that is printed; the
// test is skipped.
#include <gmock/gmock.h>

#include <cstdio>

#include "base/device_cuda.h"
#include "base/error.h"

int main(int argc, char** argv) {
    ::testing::InitGoogleMock(&argc, argv);
    try {
        const ferry::CudaDeviceInfo info = ferry::cuda_device(0).info();
        std::printf("%s, compute capability %d.%d\n", info.name.c_str(), info.capability / 10,
                    info.capability % 10);
    } catch (const ferry::Error& error) {
        std::printf("%s\n", error.what());
        return error.kind() == ferry::ErrorKind::usage ? 77 : 1;
    }
    return RUN_ALL_TESTS();
}
