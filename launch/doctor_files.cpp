// What `ferry doctor` asks of a file system.
#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "launch/doctor_checks.h"
#include "runtime/hdf5_file.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kPieceBytes = size_t{8} << 20;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Magic numbers of statfs(2) and of Lustre, GPFS and BeeGFS.
std::string file_system_name(const std::string& dir) {
    struct statfs info {};
    if (::statfs(dir.c_str(), &info) != 0) return "?";
    switch (static_cast<uint32_t>(info.f_type)) {
        case 0x0bd00bd0:
            return "lustre";
        case 0x47504653:
            return "gpfs";
        case 0x19830326:
            return "beegfs";
        case 0x00006969:
            return "nfs";
        case 0x01021994:
            return "tmpfs";
        case 0x0000ef53:
            return "ext4";
        case 0x58465342:
            return "xfs";
        case 0x9123683e:
            return "btrfs";
        case 0x794c7630:
            return "overlay";
        case 0x65735546:
            return "fuse";
        default:
            return fmt::format("type {:#x}", static_cast<uint32_t>(info.f_type));
    }
}

class TemporaryFile {
  public:
    explicit TemporaryFile(std::string path) : path_(std::move(path)) {
        fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd_ < 0) fail("cannot be made");
    }
    ~TemporaryFile() {
        ::close(fd_);
        ::unlink(path_.c_str());
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    // GB/s; what is written is on the disk.
    double write(int size_mib) {
        const std::vector<char> piece(kPieceBytes, 'f');
        const auto start = Clock::now();
        const size_t size = static_cast<size_t>(size_mib) << 20;
        for (size_t done = 0; done < size;) {
            const ssize_t got = ::write(fd_, piece.data(), std::min(kPieceBytes, size - done));
            if (got <= 0) fail("cannot be written");
            done += static_cast<size_t>(got);
        }
        if (::fsync(fd_) != 0) fail("cannot be synced");
        return static_cast<double>(size) / seconds_since(start) * 1e-9;
    }

    // GB/s, after asking the kernel to forget the file.
    double read() {
        ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
        std::vector<char> piece(kPieceBytes);
        const auto start = Clock::now();
        size_t size = 0;
        for (;;) {
            const ssize_t got = ::pread(fd_, piece.data(), kPieceBytes, static_cast<off_t>(size));
            if (got < 0) fail("cannot be read");
            if (got == 0) break;
            size += static_cast<size_t>(got);
        }
        return static_cast<double>(size) / seconds_since(start) * 1e-9;
    }

  private:
    [[noreturn]] void fail(const char* what) const {
        throw Error(ErrorKind::input, "{} {}: {}", path_, what, std::strerror(errno));
    }

    std::string path_;
    int fd_ = -1;
};

Finding hdf5_finding(const std::string& path) {
    Finding finding{.check = "hdf5", .found = {}, .fix = {}};
    try {
        Hdf5File::create(path).create_text("text", "ferry");
        const bool same = Hdf5File::open(path).read_text("text") == "ferry";
        finding.found = same ? "writes and reads" : "reads something else than it wrote";
        if (!same) finding.verdict = Verdict::fail;
    } catch (const Error& error) {
        finding.verdict = Verdict::fail;
        finding.found = error.what();
    }
    if (finding.verdict == Verdict::fail)
        finding.fix = "where the file system has no locks: export HDF5_USE_FILE_LOCKING=FALSE";
    ::unlink(path.c_str());
    return finding;
}

}  // namespace

std::vector<Finding> file_findings(const std::string& dir, int size_mib, const std::string& host) {
    constexpr double kSlowGigabytesPerSecond = 0.2;  // an hour for DeepSeek-V3
    const std::string name = fmt::format("{}/.ferry-doctor-{}-{}", dir, host, ::getpid());
    Finding files{
        .check = "files", .found = fmt::format("{} ({})", dir, file_system_name(dir)), .fix = {}};
    struct statvfs space {};
    const double free_gb =
        ::statvfs(dir.c_str(), &space) == 0
            ? static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize) * 1e-9
            : 0;
    try {
        TemporaryFile file(name);
        const double write = file.write(size_mib), read = file.read();
        files.figures = {{"write", write, "GB/s"}, {"read", read, "GB/s"}, {"free", free_gb, "GB"}};
        if (read < kSlowGigabytesPerSecond) {
            files.verdict = Verdict::warn;
            files.fix =
                "slow loading: put checkpoints on the parallel file system, striped over many "
                "of its servers (slurm/README.md)";
        }
    } catch (const Error& error) {
        files.verdict = Verdict::fail;
        files.found = error.what();
        files.fix = "choose a folder that every host can write, with --dir";
        return {files};
    }
    return {files, hdf5_finding(name + ".h5")};
}

}  // namespace ferry
