#include "runtime/journal_files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "runtime/checksum.h"
#include "runtime/line_reader.h"

namespace ferry {
namespace {

constexpr size_t kMaxPartLineBytes = size_t{1} << 30;
constexpr size_t kBufferBytes = 1 << 20;
constexpr std::string_view kPartPrefix = "part-";
constexpr std::string_view kPartSuffix = ".jsonl";

// Reads what part_line wrote; false for anything else.
bool take(std::string_view& rest, std::string_view expected) {
    if (!rest.starts_with(expected)) return false;
    rest.remove_prefix(expected.size());
    return true;
}

template <typename Integer>
bool take_number(std::string_view& rest, Integer& number, int base) {
    const auto result = std::from_chars(rest.data(), rest.data() + rest.size(), number, base);
    if (result.ec != std::errc()) return false;
    rest.remove_prefix(static_cast<size_t>(result.ptr - rest.data()));
    return true;
}

// Of everything that a line says.
uint64_t line_checksum(int64_t index, int64_t sample, std::string_view completion) {
    Checksum sum;
    const std::string head = fmt::format("{}/{}/", index, sample);
    sum.add(head.data(), head.size());
    sum.add(completion.data(), completion.size());
    return sum.value();
}

bool parse_part_line(std::string_view line, PartRecord& record) {
    uint64_t expected = 0;
    std::string_view rest = line;
    if (!take(rest, "{\"index\": ") || !take_number(rest, record.index, 10) ||
        !take(rest, ", \"sample\": ") || !take_number(rest, record.sample, 10) ||
        !take(rest, ", \"checksum\": \"") || !take_number(rest, expected, 16) ||
        !take(rest, "\", \"completion\": ") || !rest.ends_with('}'))
        return false;
    record.offset_bytes = static_cast<int64_t>(rest.data() - line.data());
    rest.remove_suffix(1);
    record.completion = rest;
    return line_checksum(record.index, record.sample, rest) == expected;
}

}  // namespace

std::string part_line(int64_t index, int64_t sample, std::string_view completion) {
    return fmt::format(
        "{{\"index\": {}, \"sample\": {}, \"checksum\": \"{:016x}\", \"completion\": {}}}\n", index,
        sample, line_checksum(index, sample, completion), completion);
}

int64_t read_part(const std::string& path, const std::function<void(const PartRecord&)>& visit) {
    LineReader lines(path, kMaxPartLineBytes);
    TextLine line;
    int64_t begin_bytes = 0;
    int64_t whole_bytes = 0;
    while (lines.next(line)) {
        PartRecord record;
        const bool whole = line.complete && !line.too_long && parse_part_line(line.text, record);
        if (whole) {
            record.offset_bytes += begin_bytes;
            visit(record);
            whole_bytes = line.end_bytes;
        } else {
            log_warn("{}:{}: torn or damaged line dropped; its request is done again", path,
                     line.number);
        }
        begin_bytes = line.end_bytes;
    }
    return whole_bytes;
}

std::vector<std::string> list_parts(const std::string& dir) {
    std::vector<std::string> parts;
    std::error_code error;
    for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end;
         it.increment(error)) {
        const std::string name = it->path().filename().string();
        if (name.starts_with(kPartPrefix) && name.ends_with(kPartSuffix))
            parts.push_back(it->path().string());
    }
    if (error) throw Error(ErrorKind::input, "{}: cannot be listed: {}", dir, error.message());
    std::sort(parts.begin(), parts.end());
    return parts;
}

std::string part_path(const std::string& dir, int rank) {
    return fmt::format("{}/{}{:05}{}", dir, kPartPrefix, rank, kPartSuffix);
}

PartFile::PartFile(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0)
        throw Error(ErrorKind::input, "{}: cannot be opened: {}", path_, std::strerror(errno));
}

PartFile::PartFile(PartFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

PartFile::~PartFile() {
    if (fd_ >= 0) ::close(fd_);
}

void PartFile::read_at(int64_t offset_bytes, size_t num_bytes, char* dst) const {
    while (num_bytes > 0) {
        const ssize_t got = ::pread(fd_, dst, num_bytes, offset_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            throw Error(ErrorKind::input, "{}: cannot be read at byte {}: {}", path_, offset_bytes,
                        got == 0 ? "it became shorter" : std::strerror(errno));
        dst += got;
        offset_bytes += got;
        num_bytes -= static_cast<size_t>(got);
    }
}

int write_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t written = ::write(fd, bytes.data(), bytes.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno;
        bytes.remove_prefix(static_cast<size_t>(written));
    }
    return 0;
}

NewFile::NewFile(std::string path, const std::string& suffix)
    : path_(std::move(path)), temporary_(path_ + suffix) {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) fail("cannot be made", errno);
}

NewFile::~NewFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(temporary_.c_str());
}

void NewFile::fail(const char* what, int error_number) const {
    throw Error(ErrorKind::input, "{}: {}: {}", temporary_, what, std::strerror(error_number));
}

void NewFile::write(std::string_view bytes) {
    buffer_ += bytes;
    if (buffer_.size() >= kBufferBytes) flush();
}

void NewFile::flush() {
    if (const int error = write_all(fd_, buffer_)) fail("cannot be written", error);
    buffer_.clear();
}

void NewFile::reach_disk() {
    flush();
    if (::fsync(fd_) != 0) fail("cannot be written", errno);
}

void NewFile::take_name() {
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be renamed", errno);
}

void NewFile::close() {
    ::close(fd_);
    fd_ = -1;
    sync_folder(std::filesystem::path(path_).parent_path().string());
}

void NewFile::commit() {
    reach_disk();
    take_name();
    close();
}

bool NewFile::commit_if_new() {
    reach_disk();
    // Links do not replace what is there, as names that are changed do.
    if (::link(temporary_.c_str(), path_.c_str()) == 0)
        ::unlink(temporary_.c_str());
    else if (errno == EEXIST || ::access(path_.c_str(), F_OK) == 0)
        return false;
    else
        take_name();  // a file system without links
    close();
    return true;
}

void sync_folder(const std::string& dir) {
    const int fd = ::open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) throw Error(ErrorKind::input, "{}: cannot be opened: {}", dir, strerror(errno));
    ::fsync(fd);  // some file systems have no such thing for folders
    ::close(fd);
}

}  // namespace ferry
