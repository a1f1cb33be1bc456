// Lines of a text file of any size, one at a time, in bounded memory.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

struct TextLine {
    int64_t number = 0;          // from 1
    std::string_view text = {};  // without its line end ("\n" or "\r\n"); valid until the next call
    bool too_long = false;       // longer than the reader's limit: `text` is its beginning
    bool complete = true;        // false for a last line without "\n"
    int64_t end_bytes = 0;       // offset in the file behind it
};

class LineReader {
  public:
    static constexpr size_t kDefaultMaxLineBytes = 64 << 20;

    // "-" is standard input. Throws Error(input); Error(requeue) when a stop was requested
    // (runtime/stop_signal.h) while a pipe or a terminal had nothing to say, then and in next().
    explicit LineReader(const std::string& path, size_t max_line_bytes = kDefaultMaxLineBytes);
    ~LineReader();
    LineReader(const LineReader&) = delete;
    LineReader& operator=(const LineReader&) = delete;

    // False at the end of the file. Throws Error(input) when it cannot be read.
    bool next(TextLine& line);
    // Whether next() would give a line, or the end, without waiting. Throws as next() does.
    bool ready();

    const std::string& name() const { return name_; }  // for messages

  private:
    bool fill();
    const char* find_end();  // of the line that begins at begin_; null when it is not read yet

    std::string name_;
    int fd_;
    bool may_wait_;  // for what comes: no regular file
    size_t max_line_bytes_;
    std::string buffer_;  // [begin_, end_) is read and not given yet
    size_t begin_ = 0;
    size_t end_ = 0;
    size_t searched_ = 0;       // bytes behind begin_ without a line end
    int64_t offset_bytes_ = 0;  // of begin_ in the file
    int64_t number_ = 0;
    bool at_end_ = false;
};

// Standard input, a pipe, a device: what is read once is gone.
bool can_be_read_once(const std::string& path);

// Throws Error(input) that names the file when it begins like one of gzip or zstd.
void refuse_compressed(const std::string& name, std::string_view first_bytes);

// What a whole file holds: one pass over it.
struct TextSummary {
    int64_t num_lines = 0;  // that are not blank
    uint64_t checksum = 0;  // XXH3 of its bytes
};
// Throws Error(input), also for a compressed file.
TextSummary summarize_text(const std::string& path);

// Only spaces, tabs, carriage returns.
bool is_blank(std::string_view text);

}  // namespace ferry
