// Runs a program and gathers what it says.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ferry::testing {

struct ProcessResult {
    int exit_code = -1;  // -1: ended by a signal
    int signal = 0;
    std::string out;
    std::string err;
    // Resident memory less that of files, which the kernel may take away at any time; every few
    // milliseconds.
    std::vector<int64_t> own_bytes;
};

struct ProcessOptions {
    std::string input = {};  // for its standard input
    int send_signal = 0;     // after `signal_after_s`, unless it ended before
    double signal_after_s = 0;
    std::string signal_when_grown = {};         // a file: the signal waits until it has grown
    std::vector<std::string> environment = {};  // "NAME=value", beside the caller's
    std::function<void()> before_start = {};    // in the child, e.g. to take limits or another user
};

// `arguments[0]` is the program. Kills it after 100 s.
ProcessResult run_process(const std::vector<std::string>& arguments,
                          const ProcessOptions& options = {});

}  // namespace ferry::testing
