#include "runtime/checksum.h"

#include <gtest/gtest.h>

#include <string>

namespace ferry {
namespace {

TEST(Checksum, IsXxh3) {
    // The published value for no data with seed 0.
    EXPECT_EQ(checksum("", 0), 0x2d06800538d394c2u);
}

TEST(Checksum, PiecesGiveTheSameAsTheWhole) {
    std::string data(100'000, '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * i >> 3);
    Checksum pieces;
    for (size_t begin = 0; begin < data.size(); begin += 777)
        pieces.add(data.data() + begin, std::min<size_t>(777, data.size() - begin));
    EXPECT_EQ(pieces.value(), checksum(data.data(), data.size()));
    data[5000] ^= 1;
    EXPECT_NE(pieces.value(), checksum(data.data(), data.size()));
}

}  // namespace
}  // namespace ferry
