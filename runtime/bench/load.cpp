#include "runtime/bench/load.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "runtime/input_file.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = 16 << 20;

// A file for calls that InputFile does not make.
class Descriptor {
  public:
    explicit Descriptor(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
        if (fd_ < 0)
            throw Error(ErrorKind::checkpoint, "{}: cannot be opened: {}", path,
                        std::strerror(errno));
    }
    ~Descriptor() { ::close(fd_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int fd() const { return fd_; }

  private:
    int fd_;
};

int64_t cached_pages(const std::string& path, int64_t& num_pages) {
    const Descriptor file(path);
    const auto size = static_cast<size_t>(fs::file_size(path));
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    num_pages = static_cast<int64_t>((size + page - 1) / page);
    if (size == 0) return 0;
    void* map = ::mmap(nullptr, size, PROT_NONE, MAP_SHARED, file.fd(), 0);
    if (map == MAP_FAILED) return 0;
    std::vector<unsigned char> present(static_cast<size_t>(num_pages));
    const bool known = ::mincore(map, size, present.data()) == 0;
    ::munmap(map, size);
    if (!known) return 0;
    return std::count_if(present.begin(), present.end(),
                         [](unsigned char each) { return (each & 1) != 0; });
}

bool lie_in_memory(const std::vector<std::string>& paths) {
    struct statfs about {};
    return ::statfs(paths[0].c_str(), &about) == 0 &&
           (about.f_type == TMPFS_MAGIC || about.f_type == RAMFS_MAGIC);
}

// Clean pages of all files of the node; needs root. False where it may not.
bool drop_all_caches() {
    std::FILE* file = std::fopen("/proc/sys/vm/drop_caches", "w");
    if (file == nullptr) return false;
    const bool written = std::fputs("1\n", file) >= 0;
    return std::fclose(file) == 0 && written;
}

}  // namespace

std::vector<std::string> weight_files(const std::string& model_path) {
    const fs::path folder =
        fs::is_directory(model_path) ? fs::path(model_path) : fs::path(model_path).parent_path();
    std::vector<std::string> paths;
    std::error_code unreadable;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, unreadable)) {
        const fs::path extension = entry.path().extension();
        if (extension == ".h5" || extension == ".safetensors")
            paths.push_back(entry.path().string());
    }
    std::sort(paths.begin(), paths.end());
    if (paths.empty())
        throw Error(ErrorKind::checkpoint, "{}: holds no .h5 or .safetensors files",
                    folder.string());
    return paths;
}

int64_t total_file_bytes(const std::vector<std::string>& paths) {
    int64_t bytes = 0;
    for (const std::string& path : paths) bytes += static_cast<int64_t>(fs::file_size(path));
    return bytes;
}

std::string drop_from_cache(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
        const Descriptor file(path);
        ::fdatasync(file.fd());  // pages that are not on disk yet cannot go
        ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED);
    }
    if (cached_share(paths) <= kColdShare || lie_in_memory(paths) || !drop_all_caches())
        return "posix_fadvise";
    return "drop_caches";
}

double cached_share(const std::vector<std::string>& paths) {
    int64_t cached = 0, all = 0;
    for (const std::string& path : paths) {
        int64_t num_pages = 0;
        cached += cached_pages(path, num_pages);
        all += num_pages;
    }
    return all > 0 ? static_cast<double>(cached) / static_cast<double>(all) : 0;
}

int64_t read_part(const std::vector<std::string>& paths, int64_t index, int64_t count) {
    const int64_t total = total_file_bytes(paths);
    const int64_t begin = total / count * index + std::min(total % count, index);
    const int64_t end = begin + total / count + (index < total % count ? 1 : 0);
    std::vector<char> piece(static_cast<size_t>(std::min(kPieceBytes, end - begin)));
    int64_t first = 0, done = 0;  // of the current file, in all of them
    for (const std::string& path : paths) {
        const InputFile file(path);
        const int64_t last = first + file.size_bytes();
        for (int64_t at = std::max(first, begin); at < std::min(last, end);) {
            const int64_t num = std::min({kPieceBytes, last - at, end - at});
            file.read_at(at - first, static_cast<size_t>(num), piece.data());
            at += num;
            done += num;
        }
        first = last;
    }
    return done;
}

}  // namespace ferry
