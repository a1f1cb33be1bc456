#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "base/device_cuda.h"
#include "base/error.h"
#include "comm/launcher.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/text_output.h"
#include "launch/versions.h"

// A number that a shell has closed (<&-) would go to the next file that is opened: a pipe of MPI's
// would be waited for as if it were the input. Reading and writing these fails, as on closed ones.
static void keep_standard_numbers() {
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(file, F_GETFD) < 0)
            ::open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

// Rank 0 has a connection to every rank, others may have. What shells are given is 1024 as a rule;
// what containers permit may be a billion, which launchers that Ferry starts would close one by
// one.
static void allow_many_files() {
    constexpr rlim_t kEnough = 65536;
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
    limit.rlim_cur = std::min(limit.rlim_max, kEnough);
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

// The only place that catches: every failure becomes one line and an exit code.
int main(int argc, char** argv) {
    keep_standard_numbers();
    allow_many_files();
    if (ferry::launcher_tasks(ferry::own_environment) > 1) ferry::load_kernels_at_once();
    ferry::CommandLine command_line("ferry",
                                    "Ferry: distributed inference for mixture-of-experts models");
    ferry::Command root = command_line.root();
    root.flag_version(ferry::describe_versions, "Versions of all that is linked");
    root.needs_command();
    root.footer(
        "Exit codes: 0 done, 2 usage or configuration, 3 checkpoint, 4 input or output,\n"
        "5 communication, 6 memory, 75 stopped early (run again to go on).");
    ferry::add_bench(root);
    ferry::add_config(root);
    ferry::add_convert(root);
    ferry::add_doctor(root);
    ferry::add_generate(root);
    ferry::add_inspect(root);
    ferry::add_report(root);
    ferry::add_top(root);
    try {
        const int code = command_line.run(argc, argv);
        ferry::flush_output();
        return code;
    } catch (const ferry::Error& error) {
        std::fprintf(stderr, "ferry: %s: %s\n", ferry::to_string(error.kind()), error.what());
        return ferry::exit_code(error.kind());
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "ferry: memory: this machine has not enough for what was asked\n");
        return ferry::exit_code(ferry::ErrorKind::memory);
    } catch (const std::filesystem::filesystem_error& error) {
        const ferry::ErrorKind kind = ferry::ErrorKind::input;
        std::fprintf(stderr, "ferry: %s: %s: %s\n", ferry::to_string(kind), error.path1().c_str(),
                     error.code().message().c_str());
        return ferry::exit_code(kind);
    } catch (const std::exception& error) {  // of the standard library, where nobody expected one
        std::fprintf(stderr, "ferry: unexpected: %s\n", error.what());
        return 1;
    }
}
