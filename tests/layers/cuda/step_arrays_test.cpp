#include "layers/cuda/step_arrays.h"

#include <numeric>

#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

std::vector<int32_t> read_back(const int32_t* on_device, size_t count) {
    std::vector<int32_t> host(count);
    cuda_device(0).copy_to_host(host.data(), on_device, count * sizeof(int32_t));
    return host;
}

TEST(StepArrays, UploadsAnArrayOncePerContentToOneAddress) {
    StepArrays arrays(cuda_device(0));
    std::vector<int32_t> positions{1, 2, 3};
    const int32_t* first = arrays.on_device<int32_t>(positions);
    EXPECT_EQ(read_back(first, 3), positions);
    EXPECT_EQ(arrays.on_device<int32_t>(positions), first);
    EXPECT_EQ(arrays.num_uploads(), 1);

    positions[1] = 7;
    EXPECT_EQ(arrays.on_device<int32_t>(positions), first);
    EXPECT_EQ(arrays.num_uploads(), 2);
    EXPECT_EQ(read_back(first, 3), positions);

    // Part of an array is an array of its own when it begins elsewhere.
    const int32_t* rest = arrays.on_device(std::span<const int32_t>(positions).subspan(1));
    EXPECT_EQ(read_back(rest, 2), (std::vector<int32_t>{7, 3}));
    EXPECT_EQ(arrays.on_device(std::span<const int32_t>()), nullptr);
}

TEST(StepArrays, EveryUploadArrivesThoughTheRingIsSmall) {
    StepArrays arrays(cuda_device(0), size_t{16} << 20);
    std::vector<std::vector<int32_t>> many(40);
    std::vector<const int32_t*> on_device;
    for (size_t i = 0; i < many.size(); ++i) {
        many[i].resize(20000 + 777 * i);
        std::iota(many[i].begin(), many[i].end(), static_cast<int32_t>(1000000 * i));
        on_device.push_back(arrays.on_device<int32_t>(many[i]));
        // What the call in progress got before stays, even when room ran out in between.
        if (i > 0) {
            ASSERT_EQ(read_back(on_device[i - 1], many[i - 1].size()), many[i - 1]) << i;
        }
        ASSERT_EQ(read_back(on_device[i], many[i].size()), many[i]) << i;
    }
}

TEST(StepArrays, AGraphIsRecordedWithArraysThatAreUpToDate) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    CudaDevice& device = cuda_device(0);
    StepArrays arrays(device);
    std::vector<int32_t> tokens{1, 2, 3};
    const int32_t* first = arrays.on_device<int32_t>(tokens);
    const CudaGraph graph =
        CudaGraph::record(device, [&] { EXPECT_EQ(arrays.on_device<int32_t>(tokens), first); });
    graph.launch(device);
    device.synchronize();
    EXPECT_DEATH(CudaGraph::record(device,
                                   [&] {
                                       tokens[1] = 5;
                                       arrays.on_device<int32_t>(tokens);
                                   }),
                 "begin_step comes first");
    // It would not be brought up to date in later steps either.
    arrays.end_step();
    EXPECT_DEATH(CudaGraph::record(device, [&] { arrays.on_device<int32_t>(tokens); }),
                 "begin_step does not know");
}

// What a graph is recorded with: whatever others do, and though there was nothing at first.
TEST(StepArrays, ArraysOfAnOwnerKeepTheirPlaces) {
    StepArrays arrays(cuda_device(0), size_t{64} << 10);
    std::vector<int32_t> pages{5, 6};
    pages.reserve(1000);
    const auto place_of = [&](size_t most) {
        return static_cast<const int32_t*>(
            arrays.on_device(&pages, std::as_bytes(std::span(pages)), most * sizeof(int32_t)));
    };
    const int32_t* shared = place_of(1000);
    arrays.use(1);
    const int32_t* first = place_of(1000);
    EXPECT_NE(first, shared);
    arrays.use(2);
    pages.clear();
    const int32_t* second = place_of(1000);
    ASSERT_NE(second, nullptr);
    EXPECT_NE(second, first);
    arrays.use(0);
    EXPECT_EQ(place_of(1000), nullptr);
    std::vector<std::vector<int32_t>> many(100, std::vector<int32_t>(1000, 7));
    for (const std::vector<int32_t>& other : many) arrays.on_device<int32_t>(other);
    pages.assign(1000, 3);
    for (const auto& [owner, place] : {std::pair{1, first}, {2, second}}) {
        arrays.use(static_cast<uint64_t>(owner));
        EXPECT_EQ(place_of(1000), place);
        EXPECT_EQ(read_back(place, pages.size()), pages);
    }
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            pages.resize(1100);
            place_of(1000);
        },
        "4400 bytes has a place of 4096");
    arrays.drop(1);
    arrays.use(2);
    EXPECT_EQ(place_of(1000), second);
}

TEST(StepArrays, AnArrayThatGrows) {
    StepArrays arrays(cuda_device(0));
    std::vector<int32_t> tokens;
    tokens.reserve(100000);
    for (size_t count : {1, 5, 3000, 100000, 2}) {
        tokens.resize(count);
        std::iota(tokens.begin(), tokens.end(), static_cast<int32_t>(count));
        EXPECT_EQ(read_back(arrays.on_device<int32_t>(tokens), count), tokens);
    }
}

// Pages of many long sequences that share their beginning.
TEST(StepArrays, AnArrayThatIsLargerThanTheRoomForAll) {
    StepArrays arrays(cuda_device(0), size_t{64} << 10);
    std::vector<int32_t> pages(400000);
    std::iota(pages.begin(), pages.end(), 5);
    const int32_t* large = arrays.on_device<int32_t>(pages);
    EXPECT_EQ(read_back(large, pages.size()), pages);
    EXPECT_EQ(arrays.on_device<int32_t>(pages), large);
    EXPECT_EQ(arrays.num_uploads(), 1);
    // The call in progress has it still when room for others ran out once in between.
    std::vector<std::vector<int32_t>> others(4, std::vector<int32_t>(1500, 7));
    for (const std::vector<int32_t>& other : others) arrays.on_device<int32_t>(other);
    EXPECT_EQ(read_back(large, pages.size()), pages);
    pages[7] = 0;
    EXPECT_EQ(read_back(arrays.on_device<int32_t>(pages), pages.size()), pages);
}

}  // namespace
}  // namespace ferry
