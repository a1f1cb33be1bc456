#include "runtime/line_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checksum.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

struct Line {
    int64_t number;
    std::string text;
    bool too_long, complete;
    int64_t end_bytes;

    bool operator==(const Line&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Line& line) {
    return out << line.number << " \"" << line.text.substr(0, 40) << "\" " << line.too_long
               << line.complete << " " << line.end_bytes;
}

class LineReaderTest : public ::testing::Test {
  protected:
    std::vector<Line> read(const std::string& bytes, size_t max_line_bytes = 1 << 20) {
        testing::write_file(dir_ / "t", bytes);
        LineReader reader(dir_ / "t", max_line_bytes);
        std::vector<Line> lines;
        TextLine line;
        while (reader.next(line))
            lines.push_back({line.number, std::string(line.text), line.too_long, line.complete,
                             line.end_bytes});
        return lines;
    }
    testing::TempDir dir_;
};

TEST_F(LineReaderTest, LineEndsOfBothKindsAndAnOpenLastLine) {
    const std::vector<Line> expected = {{1, "a", false, true, 2},
                                        {2, "", false, true, 3},
                                        {3, "bc", false, true, 7},
                                        {4, "d", false, false, 8}};
    EXPECT_EQ(read("a\n\nbc\r\nd"), expected);
}

TEST_F(LineReaderTest, EmptyFile) {
    EXPECT_TRUE(read("").empty());
    EXPECT_EQ(read("\n").size(), 1u);
}

TEST_F(LineReaderTest, LinesAcrossBlocks) {
    const std::string first(3'000'000, 'x'), second(1'048'576, 'y');
    const std::vector<Line> expected = {{1, first, false, true, 3'000'001},
                                        {2, second, false, true, 4'048'578},
                                        {3, "z", false, true, 4'048'580}};
    EXPECT_EQ(read(first + "\n" + second + "\nz\n", 4 << 20), expected);
}

TEST_F(LineReaderTest, TooLongLinesAreCutAndPassed) {
    const std::vector<Line> expected = {
        {1, "abcd", true, true, 7}, {2, "efgh", false, true, 12}, {3, "ijkl", true, false, 17}};
    EXPECT_EQ(read("abcdXX\nefgh\nijklX", 4), expected);
    const std::string huge(5'000'000, 'x');
    const std::vector<Line> expected_huge = {{1, std::string(10, 'x'), true, true, 5'000'001},
                                             {2, "next", false, true, 5'000'006}};
    EXPECT_EQ(read(huge + "\nnext\n", 10), expected_huge);
}

// A writer that stops in the middle of a line does not hold up who asks whether there is one.
TEST_F(LineReaderTest, HalfALineInAPipeIsNotReady) {
    const std::string path = dir_ / "pipe";
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    const int writer = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(writer, 0);
    const auto write = [&](const std::string& text) {
        ASSERT_EQ(::write(writer, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    };
    LineReader reader(path, 5);
    TextLine line;
    EXPECT_FALSE(reader.ready());
    write("on");
    EXPECT_FALSE(reader.ready());
    EXPECT_FALSE(reader.ready());
    write("e\ntw");
    ASSERT_TRUE(reader.ready());
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.text, "one");
    EXPECT_FALSE(reader.ready());
    write("o\nthree, too long");
    ASSERT_TRUE(reader.ready());
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.text, "two");
    EXPECT_EQ(line.end_bytes, 8);
    EXPECT_TRUE(reader.ready());  // it will be refused, however it ends
    write("\nfour");
    ASSERT_TRUE(reader.next(line));
    EXPECT_TRUE(line.too_long);
    EXPECT_EQ(line.text, "three");
    EXPECT_FALSE(reader.ready());
    ::close(writer);
    ASSERT_TRUE(reader.ready());  // the end
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.text, "four");
    EXPECT_FALSE(line.complete);
    EXPECT_TRUE(reader.ready());
    EXPECT_FALSE(reader.next(line));
}

TEST_F(LineReaderTest, SaysWhatCannotBeRead) {
    EXPECT_ERROR(LineReader("/nowhere/x"), ErrorKind::input, "/nowhere/x", "No such file");
    EXPECT_ERROR(LineReader(dir_.path()), ErrorKind::input, "is a folder");
}

TEST_F(LineReaderTest, CompressedFilesAreRefused) {
    for (const char* magic : {"\x1f\x8b\x08", "\x28\xb5\x2f\xfd"}) {
        testing::write_file(dir_ / "t", std::string(magic) + "\nmore");
        EXPECT_ERROR(summarize_text(dir_ / "t"), ErrorKind::input, "/t: is compressed");
    }
}

TEST_F(LineReaderTest, SummaryCountsLinesThatAreNotBlank) {
    const std::string text = "a\n \t\r\n\nb\nc";
    testing::write_file(dir_ / "t", text);
    const TextSummary summary = summarize_text(dir_ / "t");
    EXPECT_EQ(summary.num_lines, 3);
    EXPECT_EQ(summary.checksum, checksum(text.data(), text.size()));
    testing::write_file(dir_ / "t", "a\n");
    EXPECT_EQ(summarize_text(dir_ / "t").num_lines, 1);
}

}  // namespace
}  // namespace ferry
