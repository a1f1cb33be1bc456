#include "tests/support/subprocess.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <stdexcept>

#include "tests/support/temp_dir.h"

namespace ferry::testing {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void become(const std::vector<std::string>& arguments, const ProcessOptions& options,
                         const TempDir& dir) {
    const int program = ::open(arguments[0].c_str(), O_PATH | O_CLOEXEC);  // while it may be found
    for (const std::string& setting : options.environment)
        ::putenv(const_cast<char*>(setting.c_str()));
    ::dup2(::open((dir / "in").c_str(), O_RDONLY), STDIN_FILENO);
    ::dup2(::open((dir / "out").c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
    ::dup2(::open((dir / "err").c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    std::vector<char*> pointers;
    for (const std::string& argument : arguments)
        pointers.push_back(const_cast<char*>(argument.c_str()));
    pointers.push_back(nullptr);
    if (options.before_start) options.before_start();
    ::fexecve(program, pointers.data(), environ);
    ::_exit(127);
}

int64_t file_size(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 ? status.st_size : 0;
}

// Memory of a process that is really there; 0 when it is gone.
int64_t own_bytes(pid_t process) {
    std::ifstream file("/proc/" + std::to_string(process) + "/statm");
    int64_t pages = 0, resident = 0, of_files = 0;
    file >> pages >> resident >> of_files;
    return (resident - of_files) * ::sysconf(_SC_PAGESIZE);
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& arguments,
                          const ProcessOptions& options) {
    const TempDir dir;
    write_file(dir / "in", options.input);
    const int64_t size_before = file_size(options.signal_when_grown);
    const auto is_time = [&](Clock::duration since) {
        return std::chrono::duration<double>(since).count() >= options.signal_after_s &&
               (options.signal_when_grown.empty() ||
                file_size(options.signal_when_grown) > size_before);
    };
    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("fork");
    if (child == 0) become(arguments, options, dir);
    const Clock::time_point start = Clock::now();
    bool signal_sent = options.send_signal == 0;
    int status = 0;
    ProcessResult result;
    while (::waitpid(child, &status, WNOHANG) == 0) {
        if (!signal_sent && is_time(Clock::now() - start)) {
            ::kill(child, options.send_signal);
            signal_sent = true;
        }
        if (Clock::now() - start > std::chrono::seconds(100)) ::kill(child, SIGKILL);
        if (const int64_t bytes = own_bytes(child)) result.own_bytes.push_back(bytes);
        ::usleep(options.signal_when_grown.empty() ? 1000 : 100);
    }
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.out = read_file(dir / "out");
    result.err = read_file(dir / "err");
    return result;
}

}  // namespace ferry::testing
