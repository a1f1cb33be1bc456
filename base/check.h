// Broken invariants: print where and why, then abort. For the outside world throw Error (error.h)
// instead.
#pragma once
#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace ferry {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition,
                                      const std::string& message) {
    std::fprintf(stderr, "%s:%d: broken invariant: %s%s%s\n", file, line, condition,
                 message.empty() ? "" : ": ", message.c_str());
    std::fflush(stderr);
    std::abort();
}

}  // namespace ferry

// FERRY_CHECK(condition) or FERRY_CHECK(condition, "format {}", args...). Always on: shapes are
// checked on entry to coarse operations, never per element.
#define FERRY_CHECK(condition, ...)                                                               \
    do {                                                                                          \
        if (!(condition)) [[unlikely]] {                                                          \
            ::ferry::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
        }                                                                                         \
    } while (false)
