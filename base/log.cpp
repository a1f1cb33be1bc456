#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "base/error.h"

namespace ferry {
namespace {

std::string rank_prefix;

spdlog::level::level_enum to_spdlog(LogLevel level) {
    switch (level) {
        case LogLevel::debug:
            return spdlog::level::debug;
        case LogLevel::info:
            return spdlog::level::info;
        case LogLevel::warn:
            return spdlog::level::warn;
        case LogLevel::error:
            return spdlog::level::err;
    }
    return spdlog::level::info;
}

spdlog::logger& logger() {
    static const std::shared_ptr<spdlog::logger> first = [] {
        auto made = std::make_shared<spdlog::logger>(
            "ferry", std::make_shared<spdlog::sinks::stderr_sink_mt>());
        made->set_pattern("[%H:%M:%S %l] %v");
        return made;
    }();
    return *first;
}

}  // namespace

void init_log(const LogOptions& options) {
    logger().set_level(to_spdlog(options.level));
    if (options.file.empty()) return;
    try {
        logger().sinks() = {std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file)};
    } catch (const spdlog::spdlog_ex& error) {
        throw Error(ErrorKind::input, "log.file {}: cannot be opened: {}", options.file,
                    error.what());
    }
    logger().set_pattern("[%Y-%m-%d %H:%M:%S.%e %l] %v");
    logger().flush_on(spdlog::level::info);
}

void set_log_rank(int rank, const std::string& host) {
    rank_prefix = fmt::format("rank {} {}: ", rank, host);
}

void log_line(LogLevel level, const std::string& message) {
    logger().log(to_spdlog(level), "{}{}", rank_prefix, message);
}

void tell_text(const std::string& text) {
    std::fputs(text.c_str(), stderr);
}

}  // namespace ferry
