// Failures of the outside world (files, network, users). Broken invariants are FERRY_CHECK
// (check.h).
#pragma once
#include <fmt/core.h>

#include <stdexcept>
#include <string>

namespace ferry {

// What went wrong decides the exit code of the process.
enum class ErrorKind { usage, checkpoint, input, communication, memory, requeue };

// Exit codes: 0 done, 2 usage or configuration, 3 checkpoint, 4 input, 5 communication, 6 memory,
// 75 stopped early and resumable.
int exit_code(ErrorKind kind);
const char* to_string(ErrorKind kind);

// One line that says what, where and what to do. Thrown anywhere, caught only in launch/.
class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

    template <typename... Args>
    Error(ErrorKind kind, fmt::format_string<Args...> format,
          Args&&... args) requires(sizeof...(Args) > 0)
        : Error(kind, fmt::format(format, std::forward<Args>(args)...)) {}

    ErrorKind kind() const { return kind_; }

  private:
    ErrorKind kind_;
};

}  // namespace ferry
