#include "runtime/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace ferry {

InputFile::InputFile(std::string path, ErrorKind kind) : path_(std::move(path)), kind_(kind) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) throw Error(kind_, "{}: cannot be opened: {}", path_, std::strerror(errno));
    struct stat status {};
    if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
        ::close(fd_);
        throw Error(kind_, "{}: is not a regular file", path_);
    }
    size_bytes_ = status.st_size;
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      kind_(other.kind_),
      fd_(std::exchange(other.fd_, -1)),
      size_bytes_(other.size_bytes_) {}

InputFile::~InputFile() {
    if (fd_ >= 0) ::close(fd_);
}

void InputFile::read_at(int64_t offset_bytes, size_t num_bytes, void* dst) const {
    auto* out = static_cast<char*>(dst);
    while (num_bytes > 0) {
        const ssize_t got = ::pread(fd_, out, num_bytes, offset_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            throw Error(kind_, "{}: cannot be read at byte {}: {}", path_, offset_bytes,
                        std::strerror(errno));
        if (got == 0)
            throw Error(kind_, "{}: truncated: ends at byte {}, {} more needed", path_,
                        offset_bytes, num_bytes);
        out += got;
        offset_bytes += got;
        num_bytes -= static_cast<size_t>(got);
    }
}

std::string read_text_file(const std::string& path, int64_t max_bytes, ErrorKind kind) {
    const InputFile file(path, kind);
    if (file.size_bytes() > max_bytes)
        throw Error(kind, "{}: is {} bytes, more than the {} allowed", path, file.size_bytes(),
                    max_bytes);
    std::string text(static_cast<size_t>(file.size_bytes()), '\0');
    file.read_at(0, text.size(), text.data());
    return text;
}

}  // namespace ferry
