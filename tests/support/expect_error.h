// EXPECT_ERROR(statement, kind, "part", "part", ...): throws ferry::Error of that kind, on one
// line, with all parts in its message.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "base/error.h"

namespace ferry::testing {

template <typename Fn>
void expect_error(const char* file, int line, Fn&& fn, ErrorKind kind,
                  std::initializer_list<std::string> parts) {
    SCOPED_TRACE(std::string(file) + ":" + std::to_string(line));
    try {
        fn();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        for (const std::string& part : parts) EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
        EXPECT_THAT(error.what(), ::testing::Not(::testing::HasSubstr("\n")));
        return;
    }
    ADD_FAILURE() << "no error was thrown";
}

}  // namespace ferry::testing

#define EXPECT_ERROR(statement, kind, ...) \
    ::ferry::testing::expect_error(__FILE__, __LINE__, [&] { statement; }, kind, {__VA_ARGS__})
