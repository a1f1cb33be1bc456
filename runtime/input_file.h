// Files that are read: by position, from any thread, with errors that name the file.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace ferry {

// An open file. Move-only; closes itself. Errors are of the kind that is given.
class InputFile {
  public:
    explicit InputFile(std::string path, ErrorKind kind = ErrorKind::checkpoint);
    ~InputFile();
    InputFile(InputFile&& other) noexcept;
    InputFile& operator=(InputFile&&) = delete;

    const std::string& path() const { return path_; }
    int64_t size_bytes() const { return size_bytes_; }

    // Exactly `num_bytes` from `offset_bytes`; throws when the file ends before. Thread-safe.
    void read_at(int64_t offset_bytes, size_t num_bytes, void* dst) const;

  private:
    std::string path_;
    ErrorKind kind_;
    int fd_ = -1;
    int64_t size_bytes_ = 0;
};

// The whole of a small file; throws when it is larger than `max_bytes`.
std::string read_text_file(const std::string& path, int64_t max_bytes,
                           ErrorKind kind = ErrorKind::checkpoint);

}  // namespace ferry
