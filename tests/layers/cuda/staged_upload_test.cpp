#include "layers/cuda/staged_upload.h"

#include <numeric>

#include "tests/support/cuda_matrix.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

TEST(StagedUpload, RowsArriveWithTheirPitches) {
    CudaDevice& device = cuda_device(0);
    StagedUpload upload(device);
    constexpr size_t kRows = 3000, kRowBytes = 5000, kFrom = 5008,
                     kTo = 5120;  // 15 MB: two buffers
    std::vector<uint8_t> rows(kRows * kFrom), back(kRows * kTo);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    const Buffer on_device(device, back.size());
    upload.copy(on_device.data(), kTo, rows.data(), kFrom, kRowBytes, kRows);
    device.copy_to_host(back.data(), on_device.data(), back.size());
    for (size_t row = 0; row < kRows; ++row)
        ASSERT_TRUE(
            std::equal(&rows[row * kFrom], &rows[row * kFrom + kRowBytes], &back[row * kTo]))
            << row;
    EXPECT_EQ(upload.totals().bytes, static_cast<int64_t>(kRows * kRowBytes));
}

// Threads that load weights share the buffers: one that fails must not leave the others waiting.
TEST(StagedUpload, AFailureKeepsNoBuffer) {
    CudaDevice& device = cuda_device(0);
    StagedUpload upload(device);
    std::vector<int32_t> values(1000), back(1000);
    std::iota(values.begin(), values.end(), 7);
    const size_t bytes = values.size() * sizeof(values[0]);
    const Buffer on_device(device, bytes);
    const auto copy = [&] { upload.copy(on_device.data(), bytes, values.data(), bytes, bytes, 1); };
    copy();
    for (int i = 0; i < 4; ++i)  // as many as there are buffers; a recording refuses to wait
        EXPECT_ERROR(CudaGraph::record(device, copy), ErrorKind::communication,
                     "wait for an event");
    copy();
    device.copy_to_host(back.data(), on_device.data(), bytes);
    EXPECT_EQ(back, values);
}

}  // namespace
}  // namespace ferry
