#include "launch/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"
#include "comm/launcher.h"

namespace ferry {
namespace {

volatile sig_atomic_t kept_process = 0;
volatile sig_atomic_t start_was_late = 0;
volatile sig_atomic_t start_is_overtime = 0;

enum class Start { mpi_starts, ranks_meet, done };
// Of the kept process, seen by its keeper: shared memory. Null without a keeper.
std::atomic<Start>* start = nullptr;

void reach(Start stage) {
    if (start != nullptr) start->store(stage);
}

struct StartEnds {
    ~StartEnds() { reach(Start::done); }
};

// Ranks that meet have a deadline of their own and name the one that is missing: only when one is
// stuck in a call to MPI the keeper goes before.
constexpr unsigned kOvertimeS = 30;

extern "C" void pass_on(int signal) {
    if (kept_process > 0) ::kill(static_cast<pid_t>(kept_process), signal);
}

extern "C" void check_start(int) {
    if (start == nullptr || kept_process <= 0 || start->load() == Start::done) return;
    if (start->load() == Start::ranks_meet && start_is_overtime == 0) {
        start_is_overtime = 1;
        ::alarm(static_cast<unsigned>(start_timeout_s(own_environment)) + kOvertimeS);
        return;
    }
    start_was_late = 1;
    ::kill(static_cast<pid_t>(kept_process), SIGKILL);
}

constexpr int kLauncherTimeMs = 7000;

bool is_open_mpi(pid_t launcher) {
    char path[64], name[32] = {};
    std::snprintf(path, sizeof path, "/proc/%d/comm", static_cast<int>(launcher));
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const ssize_t size = ::read(file, name, sizeof name - 1);
    ::close(file);
    if (size > 0 && name[size - 1] == '\n') name[size - 1] = '\0';
    for (const char* known : {"mpirun", "mpiexec", "orterun", "orted"})
        if (std::strcmp(name, known) == 0) return true;
    return false;
}

// A rank was killed, which ends the job. But when that happens while MPI starts, mpirun of Open MPI
// 4.1 may block in its own locks (one time in some tens), deaf to signals and with nobody to end
// it: a process that it does not know of does so, when mpirun is still there after some seconds.
void end_launcher_if_stuck(pid_t launcher) {
    if (!is_open_mpi(launcher)) return;
    const int handle = static_cast<int>(::syscall(SYS_pidfd_open, launcher, 0));
    if (handle < 0 || ::getppid() != launcher || ::fork() != 0) return;
    ::setsid();
    for (const int signal : {SIGTERM, SIGUSR1, SIGHUP}) ::signal(signal, SIG_IGN);
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(file);
    pollfd ended{.fd = handle, .events = POLLIN, .revents = 0};
    if (::poll(&ended, 1, kLauncherTimeMs) == 0)
        ::syscall(SYS_pidfd_send_signal, handle, SIGKILL, nullptr, 0);
    ::_exit(0);
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
    if (start_was_late != 0)
        std::fprintf(stderr,
                     "ferry: rank %s on %s: MPI did not start within %d s: some rank has not come, "
                     "or the network between hosts does not let it through "
                     "(FERRY_START_TIMEOUT_S)\n",
                     rank == nullptr ? "?" : rank, host, start_timeout_s(own_environment));
    // SIGINT and SIGTERM are somebody's wish, and told by whoever sent them.
    else if (signal != SIGINT && signal != SIGTERM)
        std::fprintf(stderr, "ferry: rank %s on %s (process %d) was ended by signal %d (%s)\n",
                     rank == nullptr ? "?" : rank, host, static_cast<int>(process), signal,
                     ::strsignal(signal));
    end_launcher_if_stuck(::getppid());
    ::_exit(exit_code(ErrorKind::communication));
}

}  // namespace

void go_on_under_keeper() {
    if (launcher_tasks(own_environment) < 2) return;
    const pid_t keeper = ::getpid();
    void* shared = ::mmap(nullptr, sizeof(std::atomic<Start>), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared != MAP_FAILED) start = new (shared) std::atomic<Start>(Start::mpi_starts);
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
        ::signal(SIGALRM, check_start);
        ::alarm(static_cast<unsigned>(start_timeout_s(own_environment)));
    } else if (process == 0) {
        // No rank outlives its keeper: the launcher would not know of it.
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != keeper) ::_exit(exit_code(ErrorKind::communication));
    }
    sigprocmask(SIG_SETMASK, &before, nullptr);
    if (process > 0) keep(process);
}

World start_world() {
    const StartEnds after_the_world_is_made;
    return World(nullptr, nullptr, [] { reach(Start::ranks_meet); });
}

}  // namespace ferry
