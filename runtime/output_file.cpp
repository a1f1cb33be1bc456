#include "runtime/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/error.h"
#include "runtime/input_file.h"

namespace ferry {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
    const int reason = errno;
    const bool is_full = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
    throw Error(ErrorKind::checkpoint, "{}: {}: {}{}", path, what, is_full ? "disk full: " : "",
                std::strerror(reason));
}

void sync_folder_of(const std::string& path) {
    const std::string folder = std::filesystem::path(path).parent_path().string();
    const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(path, "its folder cannot be opened");
    ::fsync(fd);  // some file systems cannot; then there is nothing to do
    ::close(fd);
}

}  // namespace

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail(path_, "cannot be opened for writing");
}

OutputFile::~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
}

void OutputFile::reserve(int64_t offset_bytes, int64_t num_bytes) {
    if (num_bytes == 0 || ::fallocate(fd_, 0, offset_bytes, num_bytes) == 0) return;
    if (errno != EOPNOTSUPP && errno != ENOSYS) fail(path_, "cannot take its space");
}

void OutputFile::write_at(int64_t offset_bytes, size_t num_bytes, const void* data) {
    const auto* in = static_cast<const char*>(data);
    while (num_bytes > 0) {
        const ssize_t put = ::pwrite(fd_, in, num_bytes, offset_bytes);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail(path_, "cannot be written");
        in += put;
        offset_bytes += put;
        num_bytes -= static_cast<size_t>(put);
    }
}

void OutputFile::sync() {
    if (::fsync(fd_) != 0) fail(path_, "cannot be brought to disk");
}

FolderLock::FolderLock(const std::string& directory) {
    fd_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0) fail(directory, "cannot be opened");
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
    ::close(fd_);
    throw Error(ErrorKind::checkpoint,
                "{}: another process is writing this checkpoint; wait for it, or end it",
                directory);
}

FolderLock::~FolderLock() {
    ::close(fd_);
}

void rename_durably(const std::string& from, const std::string& to) {
    OutputFile(from).sync();
    if (std::rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot be renamed");
    sync_folder_of(to);
}

void copy_durably(const std::string& from, const std::string& to) {
    const std::string partial = to + ".partial";
    const InputFile in(from);
    if (!std::ofstream(partial, std::ios::trunc)) fail(partial, "cannot be created");
    try {
        OutputFile out(partial);
        std::vector<char> chunk(size_t{1} << 20);
        for (int64_t at = 0; at < in.size_bytes(); at += static_cast<int64_t>(chunk.size())) {
            const size_t num = static_cast<size_t>(
                std::min<int64_t>(static_cast<int64_t>(chunk.size()), in.size_bytes() - at));
            in.read_at(at, num, chunk.data());
            out.write_at(at, num, chunk.data());
        }
        rename_durably(partial, to);
    } catch (const Error&) {
        std::error_code ignored;
        std::filesystem::remove(partial, ignored);
        throw;
    }
}

}  // namespace ferry
