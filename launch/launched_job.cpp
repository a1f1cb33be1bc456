#include "launch/launched_job.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <thread>
#include <utility>

#include "base/error.h"
#include "runtime/stop_signal.h"

extern char** environ;

namespace ferry {
namespace {

std::string own_path() {
    std::error_code unknown;
    const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", unknown);
    if (unknown) throw Error(ErrorKind::usage, "--launcher: /proc/self/exe cannot be read");
    return path.string();
}

pid_t start(std::vector<std::string>& words) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    pid_t pid = -1;
    const int failed = ::posix_spawnp(&pid, argv[0], &files, &attributes, argv.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    if (failed != 0)
        throw Error(ErrorKind::usage, "--launcher {}: cannot be started: {}", words[0],
                    std::strerror(failed));
    return pid;
}

}  // namespace

std::string default_launcher() {
    return std::getenv("SLURM_JOB_ID") != nullptr ? "srun --mpi=pmix -n {ranks}"
                                                  : "mpirun -n {ranks}";
}

std::vector<std::string> launcher_words(const std::string& launcher, int num_ranks) {
    const std::string place = "{ranks}";
    std::vector<std::string> words;
    std::istringstream text(launcher);
    bool told = false;
    for (std::string word; text >> word;) {
        if (const size_t at = word.find(place); at != std::string::npos) {
            word.replace(at, place.size(), std::to_string(num_ranks));
            told = true;
        }
        words.push_back(word);
    }
    if (words.empty()) throw Error(ErrorKind::usage, "--launcher: needs a command");
    if (!told) words.insert(words.end(), {"-n", std::to_string(num_ranks)});
    return words;
}

int run_launched_job(const std::vector<std::string>& words,
                     const std::vector<std::string>& arguments) {
    std::vector<std::string> all = words;
    all.push_back(own_path());
    all.insert(all.end(), arguments.begin(), arguments.end());
    const pid_t pid = start(all);
    int status = 0;
    bool told = false;
    for (pid_t ended = 0; (ended = ::waitpid(pid, &status, WNOHANG)) != pid;) {
        if (ended < 0 && errno != EINTR)
            throw Error(ErrorKind::communication, "waiting for {} failed: {}", words[0],
                        std::strerror(errno));
        if (stop_signal() != 0 && !std::exchange(told, true)) ::kill(pid, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace ferry
