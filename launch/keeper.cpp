#include "launch/keeper.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "comm/launcher.h"

namespace ferry {
namespace {

volatile sig_atomic_t kept_process = 0;

extern "C" void pass_on(int signal) {
    if (kept_process > 0) ::kill(static_cast<pid_t>(kept_process), signal);
}

[[noreturn]] void keep(pid_t process) {
    int status = 0;
    while (::waitpid(process, &status, 0) < 0 && errno == EINTR) continue;
    if (WIFEXITED(status)) ::_exit(WEXITSTATUS(status));
    const int signal = WTERMSIG(status);
    const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
    if (rank == nullptr) rank = std::getenv("PMI_RANK");
    if (rank == nullptr) rank = std::getenv("SLURM_PROCID");
    char host[256] = {};
    ::gethostname(host, sizeof host - 1);
    // SIGINT and SIGTERM are somebody's wish, and told by whoever sent them.
    if (signal != SIGINT && signal != SIGTERM)
        std::fprintf(stderr, "ferry: rank %s on %s (process %d) was ended by signal %d (%s)\n",
                     rank == nullptr ? "?" : rank, host, static_cast<int>(process), signal,
                     ::strsignal(signal));
    ::_exit(exit_code(ErrorKind::communication));
}

}  // namespace

void go_on_under_keeper() {
    if (launcher_tasks([](const char* name) { return std::getenv(name); }) < 2) return;
    const pid_t keeper = ::getpid();
    // Signals between here and the handlers would be lost.
    sigset_t passed, before;
    sigemptyset(&passed);
    for (const int signal : {SIGTERM, SIGUSR1}) sigaddset(&passed, signal);
    sigprocmask(SIG_BLOCK, &passed, &before);
    const pid_t process = ::fork();
    if (process > 0) {
        kept_process = static_cast<sig_atomic_t>(process);
        struct sigaction action {};
        action.sa_handler = pass_on;
        sigemptyset(&action.sa_mask);
        for (const int signal : {SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
        ::signal(SIGINT, SIG_IGN);  // a terminal sends it to both
    } else if (process == 0) {
        // No rank outlives its keeper: the launcher would not know of it.
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != keeper) ::_exit(exit_code(ErrorKind::communication));
    }
    sigprocmask(SIG_SETMASK, &before, nullptr);
    if (process > 0) keep(process);
}

}  // namespace ferry
