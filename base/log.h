// One log per process: plain lines on stderr or in a file, with the rank in front once it is known.
#pragma once
#include <fmt/core.h>

#include <string>

namespace ferry {

enum class LogLevel { debug, info, warn, error };

struct LogOptions {
    LogLevel level = LogLevel::info;
    std::string file;  // empty: stderr
};

// Call once at start-up, before threads exist. Throws Error(input) when the file cannot be opened.
void init_log(const LogOptions& options);
// Shown as "rank 3 host7" in front of each line; nothing is shown for a world of one rank.
void set_log_rank(int rank, const std::string& host);

void log_line(LogLevel level, const std::string& message);

// Text on standard error that is no line of the log. That nobody can read it ends nothing.
void tell_text(const std::string& text);
template <typename... Args>
void tell(fmt::format_string<Args...> format, Args&&... args) {
    tell_text(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ferry
