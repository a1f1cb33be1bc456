#include "runtime/line_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "runtime/checksum.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

constexpr size_t kBlockBytes = 1 << 20;

void throw_if_stopped(const std::string& name) {
    if (stop_requested())
        throw Error(ErrorKind::requeue, "{} while reading {}", ::strsignal(stop_signal()), name);
}

int open_text(const std::string& path) {
    if (path == "-") return STDIN_FILENO;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == EINTR) throw_if_stopped(path);
    if (fd < 0)
        throw Error(ErrorKind::input, "{}: cannot be opened: {}", path, std::strerror(errno));
    struct stat status {};
    if (::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        ::close(fd);
        throw Error(ErrorKind::input, "{}: is a folder, not a file", path);
    }
    return fd;
}

bool is_regular(int fd) {
    struct stat status {};
    return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

// Bytes read into [data, data + size); 0 at the end.
size_t read_some(int fd, bool may_wait, const std::string& name, char* data, size_t size) {
    for (;;) {
        if (may_wait) throw_if_stopped(name);
        const ssize_t got = ::read(fd, data, size);
        if (got >= 0) return static_cast<size_t>(got);
        if (errno != EINTR)
            throw Error(ErrorKind::input, "{}: cannot be read: {}", name, std::strerror(errno));
    }
}

}  // namespace

void refuse_compressed(const std::string& name, std::string_view first_bytes) {
    constexpr std::string_view kGzip = "\x1f\x8b", kZstd = "\x28\xb5\x2f\xfd";
    if (!first_bytes.starts_with(kGzip) && !first_bytes.starts_with(kZstd)) return;
    throw Error(ErrorKind::input, "{}: is compressed, and lines of text are needed; decompress it",
                name);
}

LineReader::LineReader(const std::string& path, size_t max_line_bytes)
    : name_(path == "-" ? "standard input" : path),
      fd_(open_text(path)),
      may_wait_(!is_regular(fd_)),
      max_line_bytes_(max_line_bytes) {
    buffer_.resize(kBlockBytes);
}

LineReader::~LineReader() {
    if (fd_ != STDIN_FILENO) ::close(fd_);
}

const char* LineReader::find_end() {
    const char* const from = buffer_.data() + begin_ + searched_;
    const auto* const end =
        static_cast<const char*>(std::memchr(from, '\n', end_ - begin_ - searched_));
    if (end == nullptr) searched_ = end_ - begin_;
    return end;
}

// Reads a line as it comes: half of one is no reason to wait for the rest.
bool LineReader::ready() {
    if (!may_wait_) return true;
    while (!at_end_ && find_end() == nullptr && end_ - begin_ <= max_line_bytes_) {
        pollfd state{.fd = fd_, .events = POLLIN, .revents = 0};
        if (::poll(&state, 1, 0) <= 0) return false;
        if (stop_requested()) break;  // next() says so
        fill();
    }
    return true;
}

// Reads more behind end_; false at the end of the file.
bool LineReader::fill() {
    if (at_end_) return false;
    if (begin_ > 0) {
        std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
    }
    if (end_ == buffer_.size()) buffer_.resize(2 * buffer_.size());
    const size_t got =
        read_some(fd_, may_wait_, name_, buffer_.data() + end_, buffer_.size() - end_);
    end_ += got;
    at_end_ = got == 0;
    return got > 0;
}

bool LineReader::next(TextLine& line) {
    line = TextLine{.number = ++number_};
    int64_t dropped_bytes = 0;  // of a line that is too long, behind its beginning
    for (;;) {
        const char* const found = find_end();
        const bool ends = found != nullptr;
        size_t length = ends ? static_cast<size_t>(found - buffer_.data()) - begin_ : end_ - begin_;
        if (length > max_line_bytes_) {
            // Keep the beginning, forget the rest as it comes.
            line.too_long = true;
            const size_t forget = length - max_line_bytes_;
            std::memmove(buffer_.data() + begin_ + max_line_bytes_,
                         buffer_.data() + begin_ + length, end_ - begin_ - length);
            end_ -= forget;
            dropped_bytes += static_cast<int64_t>(forget);
            length = max_line_bytes_;
        }
        if (!ends) {
            searched_ = length;
            if (fill()) continue;
            if (length == 0 && !line.too_long) return false;
            line.complete = false;
        }
        const size_t used = length + (line.complete ? 1 : 0);
        line.text = std::string_view(buffer_).substr(begin_, length);
        if (line.text.ends_with('\r')) line.text.remove_suffix(1);
        begin_ += used;
        searched_ = 0;
        offset_bytes_ += static_cast<int64_t>(used) + dropped_bytes;
        line.end_bytes = offset_bytes_;
        return true;
    }
}

bool can_be_read_once(const std::string& path) {
    struct stat status {};
    return path == "-" || (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) &&
                           !S_ISDIR(status.st_mode));
}

TextSummary summarize_text(const std::string& path) {
    const int fd = open_text(path);
    TextSummary summary;
    Checksum checksum;
    std::string block(kBlockBytes, '\0');
    bool blank = true, first = true;
    try {
        while (const size_t got = read_some(fd, false, path, block.data(), block.size())) {
            if (std::exchange(first, false)) refuse_compressed(path, {block.data(), got});
            checksum.add(block.data(), got);
            for (size_t i = 0; i < got; ++i) {
                const char c = block[i];
                if (c == '\n') {
                    summary.num_lines += blank ? 0 : 1;
                    blank = true;
                } else if (blank && c != ' ' && c != '\t' && c != '\r') {
                    blank = false;
                }
            }
        }
    } catch (...) {
        ::close(fd);
        throw;
    }
    ::close(fd);
    summary.num_lines += blank ? 0 : 1;
    summary.checksum = checksum.value();
    return summary;
}

bool is_blank(std::string_view text) {
    return text.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace ferry
