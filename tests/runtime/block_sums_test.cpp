#include "runtime/block_sums.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "runtime/shard_index.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

TEST(BlockSums, ABlockIsSomeRowsOfOneMatrix) {
    const BlockLayout vector({DType::f32, {1000000}});
    EXPECT_EQ(vector.num_blocks(), 1);
    EXPECT_EQ(vector.rows_of(0).num, 1);
    EXPECT_EQ(vector.row_bytes, 4000000);

    const BlockLayout experts({DType::bf16, {3, 20, 64}}, 8);
    EXPECT_EQ(experts.num_blocks(), 9);
    EXPECT_EQ(experts.row_bytes, 128);
    EXPECT_EQ(experts.rows_of(4).begin, 28);  // rows 8 to 15 of the second matrix
    EXPECT_EQ(experts.rows_of(4).num, 8);
    EXPECT_EQ(experts.rows_of(5).num, 4);
    for (int64_t block = 0; block < 9; ++block)
        for (int64_t i = 0; i < experts.rows_of(block).num; ++i)
            EXPECT_EQ(experts.block_of(experts.rows_of(block).begin + i), block);

    const BlockLayout more({DType::f32, {2, 3, 20, 4}}, 8);  // of no model, but HDF5 has it
    EXPECT_EQ(more.num_matrices, 6);
    EXPECT_EQ(more.num_blocks(), 18);

    // As WeightLoader reads: some 256 KiB, in multiples of 128 rows.
    EXPECT_EQ(BlockLayout({DType::bf16, {4096, 256}}).rows_per_block, 512);
    EXPECT_EQ(BlockLayout({DType::bf16, {4096, 7168}}).rows_per_block, 128);
}

TEST(BlockSums, BytesMayComeInAnyPieces) {
    Random random(5);
    const TensorInfo info{DType::fp8_e4m3, {2, 600, 700}};
    std::vector<uint8_t> data(2 * 600 * 700);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.next_u32());
    const BlockLayout layout(info);
    EXPECT_EQ(layout.num_blocks(), 6);  // 256, 256 and 88 rows, twice
    for (const size_t piece : {size_t{1}, size_t{699}, size_t{100000}, data.size()}) {
        BlockSummer summer(info);
        for (size_t at = 0; at < data.size(); at += piece)
            summer.add(data.data() + at, std::min(piece, data.size() - at));
        const BlockSums sums = summer.take();
        EXPECT_EQ(sums.rows_per_block, layout.rows_per_block);
        ASSERT_EQ(std::ssize(sums.sums), layout.num_blocks());
        for (int64_t block = 0; block < layout.num_blocks(); ++block) {
            const Range rows = layout.rows_of(block);
            EXPECT_EQ(
                sums.sums[static_cast<size_t>(block)],
                checksum(data.data() + rows.begin * 700, static_cast<size_t>(rows.num * 700)));
        }
    }
}

TEST(BlockSums, AsTextAndBack) {
    const std::map<std::string, BlockSums> sums{{"a/b", {128, {1, 0xfedcba9876543210}}},
                                                {"norm", {1, {7}}}};
    const std::string text = to_text(sums);
    EXPECT_TRUE(text.starts_with("a/b 128 0000000000000001 fedcba9876543210\nnorm 1 "));
    const std::map<std::string, BlockSums> again = parse_block_sums(text, "x");
    EXPECT_EQ(to_text(again), text);
    EXPECT_TRUE(parse_block_sums(to_text({}), "x").empty());

    std::string damaged = text;
    damaged[12] ^= 1;
    EXPECT_ERROR(parse_block_sums(damaged, "x.h5"), ErrorKind::checkpoint,
                 "x.h5: its list of block checksums fails its checksum");
    EXPECT_ERROR(parse_block_sums("", "x.h5"), ErrorKind::checkpoint, "fails its checksum");
    for (const char* line : {"norm", "norm 0 7", "norm x 7", "norm 1 7g", "norm 1  7",
                             "norm 1 12345678901234567", "norm 99999999999999 7"})
        EXPECT_ERROR(parse_block_sums(with_checksum(std::string(line) + "\n"), "x.h5"),
                     ErrorKind::checkpoint, "x.h5", "cannot be read: 'norm'");
}

}  // namespace
}  // namespace ferry
