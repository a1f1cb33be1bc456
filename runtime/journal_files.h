// Parts of an output folder as files: their lines, and writing files that appear whole or not at
// all. Used by the journal only.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

// A line of a part: which request it finishes, and where its completion stands in the file.
struct PartRecord {
    int64_t index = 0;
    int64_t sample = 0;
    std::string_view completion;  // valid during the call
    int64_t offset_bytes = 0;     // of the completion
};

std::string part_line(int64_t index, int64_t sample, std::string_view completion);

// Calls `visit` with every whole line. Returns the bytes up to the end of the last whole line: what
// follows is torn. Damaged lines in between are passed over with a warning. Throws Error(input).
int64_t read_part(const std::string& path, const std::function<void(const PartRecord&)>& visit);

// Paths of part-*.jsonl, sorted.
std::vector<std::string> list_parts(const std::string& dir);
std::string part_path(const std::string& dir, int rank);

// A part that is read by position. Move-only; errors are Error(input).
class PartFile {
  public:
    explicit PartFile(std::string path);
    ~PartFile();
    PartFile(PartFile&& other) noexcept;
    PartFile& operator=(PartFile&&) = delete;

    void read_at(int64_t offset_bytes, size_t num_bytes, char* dst) const;

  private:
    std::string path_;
    int fd_ = -1;
};

// All of `bytes` to `fd`; 0, or errno.
int write_all(int fd, std::string_view bytes);

// A file under a temporary name that gets its own when it is complete and on the disk.
class NewFile {
  public:
    // `suffix` makes the temporary name. Throws Error(input), as do the others.
    explicit NewFile(std::string path, const std::string& suffix = ".tmp");
    ~NewFile();  // removes it when it was not committed
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;

    void write(std::string_view bytes);
    void commit();
    // False, and nothing happens, if there is such a file already: of several processes that try
    // at once (with suffixes of their own), one succeeds.
    bool commit_if_new();

  private:
    [[noreturn]] void fail(const char* what, int error_number) const;
    void flush();
    void reach_disk();
    void take_name();
    void close();

    std::string path_;
    std::string temporary_;
    std::string buffer_;
    int fd_;
};

// So that names in the folder survive the death of the node.
void sync_folder(const std::string& dir);

}  // namespace ferry
