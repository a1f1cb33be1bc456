#include "runtime/stored_tensor.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::TempDir;
using testing::write_file;

// Element i of the tensor holds i; rows 0-1 lie in file a after 3 bytes, row 2 in file b.
class ThreeRows {
  public:
    explicit ThreeRows(std::vector<int64_t> shape) {
        const int64_t row = shape[1] * shape[2];
        std::vector<int32_t> values(static_cast<size_t>(3 * row));
        std::iota(values.begin(), values.end(), 0);
        const auto* bytes = reinterpret_cast<const char*>(values.data());
        write_file(dir_ / "a", "xyz" + std::string(bytes, static_cast<size_t>(2 * row * 4)));
        write_file(dir_ / "b", std::string(bytes + 2 * row * 4, static_cast<size_t>(row * 4)));
        a_.emplace(dir_ / "a");
        b_.emplace(dir_ / "b");
        tensor.info.dtype = DType::i32;
        tensor.info.shape = std::move(shape);
        tensor.parts.push_back({0, 2, &*a_, 3});
        tensor.parts.push_back({2, 1, &*b_, 0});
    }
    std::vector<int32_t> read(std::vector<Range> box) const {
        int64_t count = 1;
        for (const Range& range : box) count *= range.num;
        std::vector<int32_t> values(static_cast<size_t>(count), -1);
        read_box(tensor, box, values.data());
        return values;
    }
    const TempDir& dir() const { return dir_; }
    StoredTensor tensor;

  private:
    TempDir dir_;
    std::optional<InputFile> a_, b_;
};

TEST(ReadBox, WholeTensorGoesOverItsParts) {
    const ThreeRows rows({3, 2, 4});
    std::vector<int32_t> expected(24);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(rows.read(whole_box(rows.tensor.info.shape)), expected);
}

TEST(ReadBox, SmallBoxes) {
    const ThreeRows rows({3, 2, 4});
    EXPECT_EQ(rows.read({{1, 2}, {1, 1}, {1, 2}}), (std::vector<int32_t>{13, 14, 21, 22}));
    EXPECT_EQ(rows.read({{2, 1}, {0, 2}, {3, 1}}), (std::vector<int32_t>{19, 23}));
    EXPECT_EQ(rows.read({{1, 2}, {0, 1}, {0, 4}}),
              (std::vector<int32_t>{8, 9, 10, 11, 16, 17, 18, 19}));
    EXPECT_TRUE(rows.read({{1, 0}, {0, 2}, {0, 4}}).empty());
}

TEST(ReadBox, EveryBoxOfATensorThatNeedsSpansAndDirectReads) {
    // A row of 3 MiB: columns of a row lie further apart than the largest gap or nearer, runs are
    // longer than a direct read or shorter.
    const ThreeRows rows({3, 24, 32768});
    for (const Range columns : {Range{5, 7}, Range{100, 30000}, Range{0, 32768}})
        for (const Range middle : {Range{3, 2}, Range{0, 24}, Range{1, 20}})
            for (const Range first : {Range{0, 3}, Range{1, 2}, Range{2, 1}}) {
                const auto got = rows.read({first, middle, columns});
                size_t i = 0;
                for (int64_t r = first.begin; r < first.begin + first.num; ++r)
                    for (int64_t m = middle.begin; m < middle.begin + middle.num; ++m)
                        for (int64_t c = columns.begin; c < columns.begin + columns.num; ++c)
                            ASSERT_EQ(got[i++], (r * 24 + m) * 32768 + c);
            }
}

TEST(ReadBox, ElementsThatStandForSeveral) {
    ThreeRows rows({3, 2, 4});
    rows.tensor.info.shape.back() = 12;
    rows.tensor.repeat = 3;
    for (int64_t begin = 0; begin < 12; ++begin)
        for (int64_t num = 0; begin + num <= 12; ++num) {
            const auto got = rows.read({{1, 2}, {0, 2}, {begin, num}});
            ASSERT_EQ(got.size(), static_cast<size_t>(4 * num));
            size_t i = 0;
            for (int64_t row = 2; row < 6; ++row)
                for (int64_t c = begin; c < begin + num; ++c)
                    EXPECT_EQ(got[i++], row * 4 + c / 3) << begin << "+" << num;
        }
}

TEST(ReadBox, ATruncatedFileIsNamed) {
    const ThreeRows rows({3, 2, 4});
    std::filesystem::resize_file(rows.dir() / "b", 20);
    EXPECT_EQ(rows.read({{2, 1}, {0, 1}, {0, 4}}), (std::vector<int32_t>{16, 17, 18, 19}));
    EXPECT_ERROR(rows.read({{2, 1}, {0, 2}, {0, 4}}), ErrorKind::checkpoint, rows.dir() / "b",
                 "truncated");
}

TEST(CheckedCount, OverflowIsNoCount) {
    const auto count = [](std::vector<int64_t> shape) { return checked_count(shape); };
    EXPECT_EQ(count({}), 1);
    EXPECT_EQ(count({3, 0, 5}), 0);
    EXPECT_EQ(count({int64_t{1} << 30, int64_t{1} << 29}), int64_t{1} << 59);
    EXPECT_EQ(count({int64_t{1} << 30, int64_t{1} << 30}), std::nullopt);
    EXPECT_EQ(count({-1}), std::nullopt);
}

}  // namespace
}  // namespace ferry
