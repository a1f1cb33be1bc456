// Files that are written so that a crash or a full disk leaves nothing that looks whole.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace ferry {

// A file that exists, opened for writing by position. Move-only; closes itself. All errors are
// Error(checkpoint) naming the file; a full disk is named as such.
class OutputFile {
  public:
    explicit OutputFile(std::string path);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    // Takes the space of these bytes now, where the file system can: a full disk is found before
    // the work, not after it.
    void reserve(int64_t offset_bytes, int64_t num_bytes);
    void write_at(int64_t offset_bytes, size_t num_bytes, const void* data);  // thread-safe
    void sync();

  private:
    std::string path_;
    int fd_ = -1;
};

// One process at a time writes a folder: taken for as long as the object or the process lives.
// Where the file system has no locks it does nothing.
class FolderLock {
  public:
    explicit FolderLock(const std::string& directory);
    ~FolderLock();
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;

  private:
    int fd_ = -1;
};

// Renames after the content is on disk, and makes the new name durable too.
void rename_durably(const std::string& from, const std::string& to);
// Copies by way of a temporary name.
void copy_durably(const std::string& from, const std::string& to);

}  // namespace ferry
