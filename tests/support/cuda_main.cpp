// main() of tests over CUDA kernels. 77: there is no GPU, the test is skipped.
#include <gmock/gmock.h>

#include <cstdio>

#include "base/device_cuda.h"

int main(int argc, char** argv) {
    ::testing::InitGoogleMock(&argc, argv);
    if (ferry::num_cuda_devices() == 0) {
        std::puts("no GPU: skipped");
        return 77;
    }
    return RUN_ALL_TESTS();
}
