// Files that are read: by position, from any thread, with errors that name the file.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace ferry {

// An open file. Move-only; closes itself. All errors are Error(checkpoint).
class InputFile {
  public:
    explicit InputFile(std::string path);
    ~InputFile();
    InputFile(InputFile&& other) noexcept;
    InputFile& operator=(InputFile&&) = delete;

    const std::string& path() const { return path_; }
    int64_t size_bytes() const { return size_bytes_; }

    // Exactly `num_bytes` from `offset_bytes`; throws when the file ends before. Thread-safe.
    void read_at(int64_t offset_bytes, size_t num_bytes, void* dst) const;

  private:
    std::string path_;
    int fd_ = -1;
    int64_t size_bytes_ = 0;
};

// The whole of a small file; throws when it is larger than `max_bytes`.
std::string read_text_file(const std::string& path, int64_t max_bytes);

}  // namespace ferry
