#include "comm/wire.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(Wire, SectionsFollowEachOtherOn64Bytes) {
    const WireLayout layout = wire_layout(DType::bf16, 100, 3, 5);
    EXPECT_EQ(layout[WireSection::header], 0u);
    EXPECT_EQ(layout[WireSection::entries], 64u);
    EXPECT_EQ(layout[WireSection::places], 128u);  // 5 entries of 12 bytes
    EXPECT_EQ(layout[WireSection::scales], 128u);
    EXPECT_EQ(layout[WireSection::rows], 128u);
    EXPECT_EQ(layout.size_bytes(), 128u + 3 * 256);  // 200 bytes of a row rounded up to 256
}

TEST(Wire, Fp8RowsHaveAScalePer128Values) {
    const WireLayout layout = wire_layout(DType::fp8_e4m3, 300, 7, 0);
    EXPECT_EQ(layout[WireSection::rows] - layout[WireSection::scales], 128u);  // 7 * 3 * 4 = 84
    EXPECT_EQ(layout.size_bytes(), 64u + 128 + 7 * 320);
}

TEST(Wire, AnEmptyMessageIsItsHeader) {
    EXPECT_EQ(wire_layout(DType::f32, 7168, 0, 0).size_bytes(), kHeaderBytes);
    static_assert(kHeaderBytes == 64);
}

TEST(Wire, RowsOnABoardHavePlacesThere) {
    const WireLayout layout = wire_layout(DType::fp8_e4m3, 300, 20, 5, WireRowsLie::on_board);
    EXPECT_EQ(layout[WireSection::places], 128u);
    EXPECT_EQ(layout.size_bytes(), 128u + 128);  // 20 places of 4 bytes, nothing else
    std::vector<std::byte> on_board(wire_layout(DType::fp8_e4m3, 300, 7, 0).size_bytes());
    std::vector<std::byte> memory(layout.size_bytes());
    const WireMessage board(on_board.data(), DType::fp8_e4m3, 300, 7, 0);
    const WireMessage message(memory.data(), DType::fp8_e4m3, 300, 20, 5, &board);
    message.places[19] = 6;
    EXPECT_EQ(message.row(19), board.row(6));
    EXPECT_EQ(message.scales(19), board.scales(6));
    EXPECT_EQ(board.row(7), on_board.data() + on_board.size());
}

TEST(Wire, RowsAndScalesDoNotOverlap) {
    std::vector<std::byte> memory(wire_layout(DType::fp8_e4m3, 130, 2, 3).size_bytes());
    const WireMessage message(memory.data(), DType::fp8_e4m3, 130, 2, 3);
    EXPECT_EQ(message.scales(1) - message.scales(0), 2);
    EXPECT_GE(reinterpret_cast<std::byte*>(message.scales(0)),
              reinterpret_cast<std::byte*>(message.entries() + 3));
    EXPECT_GE(message.row(0), reinterpret_cast<std::byte*>(message.scales(2)));
    EXPECT_EQ(message.row(2), memory.data() + memory.size());
}

}  // namespace
}  // namespace ferry
