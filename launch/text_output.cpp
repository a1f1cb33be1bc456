#include "launch/text_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "base/error.h"

namespace ferry {
namespace {

[[noreturn]] void fail(const std::string& place) {
    throw Error(ErrorKind::input, "{}: cannot be written: {}", place, std::strerror(errno));
}

}  // namespace

void print_text(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail("standard output");
    if (std::fflush(stdout) != 0) fail("standard output");
}

void flush_output() {
    std::cout.flush();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) fail("standard output");
}

void write_text(const std::string& path, std::string_view text) {
    if (path == "-") return print_text(text);
    std::FILE* file = std::fopen(path.c_str(), "w");
    const bool written =
        file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = file != nullptr && std::fclose(file) == 0;
    if (!written || !closed) fail(path);
}

void check_writable(const std::string& path) {
    if (path.empty() || path == "-") return;
    const int made = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (made >= 0) {
        ::close(made);
        ::unlink(path.c_str());
        return;
    }
    if (errno != EEXIST || ::access(path.c_str(), W_OK) != 0) fail(path);
    const int there = ::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (there >= 0)
        ::close(there);
    else if (errno != ENXIO)  // a pipe that nobody reads yet
        fail(path);
}

}  // namespace ferry
