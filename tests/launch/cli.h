// Runs the executable and looks at what users see.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace ferry::testing {

inline const std::string kDemo = std::string(FERRY_SOURCE_DIR) + "/configs/demo";

inline ProcessResult ferry(std::vector<std::string> arguments, const ProcessOptions& options = {}) {
    arguments.insert(arguments.begin(), FERRY_BINARY);
    return run_process(arguments, options);
}

inline void expect_error(const ProcessResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.err, ::testing::HasSubstr(part));
    // The last line is the error, and it is one line.
    const size_t last = result.err.rfind('\n', result.err.size() - 2);
    EXPECT_THAT(result.err.substr(last == std::string::npos ? 0 : last + 1),
                ::testing::StartsWith("ferry: "));
}

}  // namespace ferry::testing
