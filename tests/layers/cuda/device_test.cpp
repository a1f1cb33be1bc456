#include "base/device_cuda.h"

#include <cstdio>
#include <cstdlib>

#include "tests/support/cuda_matrix.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

TEST(CudaDevice, SaysWhatItIs) {
    CudaDevice& device = cuda_device(0);
    EXPECT_EQ(device.type(), DeviceType::cuda);
    EXPECT_EQ(device.name(), "cuda:0");
    EXPECT_EQ(device.ordinal(), 0);
    const CudaDeviceInfo info = device.info();
    EXPECT_GE(info.capability, 80);
    EXPECT_GT(info.num_multiprocessors, 0);
    EXPECT_LE(info.free_bytes, info.total_bytes);
    unsigned domain = 0, bus = 0, slot = 0, function = 1;
    EXPECT_EQ(std::sscanf(info.pci_bus_id.c_str(), "%x:%x:%x.%u", &domain, &bus, &slot, &function),
              4);
    EXPECT_EQ(function, 0u) << info.pci_bus_id;
}

TEST(CudaDevice, AllocatesZeros) {
    CudaDevice& device = cuda_device(0);
    for (int round = 0; round < 2; ++round) {  // the second time over memory that was used
        const Buffer buffer(device, 1000);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
        std::vector<uint8_t> host(1000, 1);
        device.copy_to_host(host.data(), buffer.data(), host.size());
        EXPECT_EQ(host, std::vector<uint8_t>(1000));
        std::fill(host.begin(), host.end(), uint8_t{7});
        device.copy_from_host(buffer.data(), host.data(), host.size());
        std::vector<uint8_t> back(1000);
        device.copy_to_host(back.data(), buffer.data(), back.size());
        EXPECT_EQ(back, host);
    }
    EXPECT_EQ(Buffer(device, 0).data(), nullptr);
}

TEST(CudaDevice, RefusesWhatIsNotThere) {
    EXPECT_ERROR(cuda_device(99), ErrorKind::usage, "GPU 99 was asked for, but there are");
    const size_t much = cuda_device(0).info().total_bytes + (size_t{1} << 30);
    EXPECT_ERROR(
        Buffer(cuda_device(0), much), ErrorKind::memory,
        fmt::format("cannot allocate {:.2f} GiB on GPU 0", static_cast<double>(much) / (1 << 30)),
        "are free");
    Buffer after(cuda_device(0), 16);  // the refusal left nothing behind
    EXPECT_NE(after.data(), nullptr);
}

TEST(CudaDevice, HopperWantsCodeOfItsOwn) {
    EXPECT_TRUE(has_kernels_for(90, "80-real 90a-real 90-virtual"));
    EXPECT_TRUE(has_kernels_for(90, "90a"));
    EXPECT_FALSE(has_kernels_for(90, "90"));
    EXPECT_FALSE(has_kernels_for(90, "90-real 90a-real"));  // CUDA might take either
    EXPECT_FALSE(has_kernels_for(90, "80"));                // compiled on for it at run time
    EXPECT_FALSE(has_kernels_for(90, "native"));
    EXPECT_TRUE(has_kernels_for(80, "80-real"));
    EXPECT_TRUE(has_kernels_for(100, "90a-real 90-virtual"));
    EXPECT_TRUE(has_kernels_for(100, "native"));
}

TEST(CudaDevice, KernelsAreLoadedAtOnceUnlessTheUserSaysOtherwise) {
    unsetenv("CUDA_MODULE_LOADING");
    load_kernels_at_once();
    EXPECT_STREQ(getenv("CUDA_MODULE_LOADING"), "EAGER");
    setenv("CUDA_MODULE_LOADING", "LAZY", 1);
    load_kernels_at_once();
    EXPECT_STREQ(getenv("CUDA_MODULE_LOADING"), "LAZY");
    unsetenv("CUDA_MODULE_LOADING");
}

TEST(CudaStreams, EventsOrderThem) {
    CudaDevice& device = cuda_device(0);
    const Stream stream(device, true);
    Event event(device, true), later(device, true);
    EXPECT_TRUE(event.done());
    event.record(stream.get());
    event.hold_up(device.stream());
    later.record(device.stream());
    later.synchronize();
    EXPECT_TRUE(event.done());
    EXPECT_TRUE(later.done());
    EXPECT_GE(later.seconds_since(event), 0);
    Stream moved(device);
    moved = Stream(device);
    moved.synchronize();
}

}  // namespace
}  // namespace ferry
