#include "base/buffer.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ferry {
namespace {

TEST(Buffer, IsZeroedAlignedAndMoves) {
    Buffer first(cpu_device(), 1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data()) % 64, 0u);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(first.as<uint8_t>()[i], 0);
    void* data = first.data();
    Buffer second = std::move(first);
    EXPECT_EQ(second.data(), data);
    EXPECT_EQ(first.data(), nullptr);
}

TEST(Buffer, AdoptedMemoryIsReleasedOnce) {
    int released = 0;
    {
        int value = 0;
        Buffer a = Buffer::adopt(&value, sizeof value, [&] { ++released; });
        Buffer b = std::move(a);
        b = Buffer();
        EXPECT_EQ(released, 1);
    }
    EXPECT_EQ(released, 1);
}

TEST(Buffer, TooMuchMemoryIsAnError) {
    try {
        Buffer huge(cpu_device(), size_t{1} << 60);
        FAIL() << "expected an Error";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::memory);
        EXPECT_NE(std::string(error.what()).find("GiB"), std::string::npos);
    }
}

TEST(OwnedTensor, ViewsItsBuffer) {
    OwnedTensor x(cpu_device(), DType::bf16, {3, 5});
    EXPECT_EQ(x.size_bytes(), 30u);
    EXPECT_EQ(x.view().rows(), 3);
    EXPECT_NE(x.view().data(), nullptr);
}

}  // namespace
}  // namespace ferry
