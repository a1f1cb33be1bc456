#include "launch/keeper.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"
#include "comm/launcher.h"

namespace ferry {
namespace {

volatile sig_atomic_t kept_process = 0;
volatile sig_atomic_t timeout_s = 0;  // of the start
volatile sig_atomic_t start_was_late = 0;
volatile sig_atomic_t start_is_overtime = 0;

enum class Start { mpi_starts, ranks_meet, done };
// Memory of the kept process, its keeper and its holder. Null without a keeper.
struct Shared {
    std::atomic<Start> start{Start::mpi_starts};
    std::atomic<int> holder{-1};  // open file of that process, -1: there is none
};
Shared* shared = nullptr;

void reach(Start stage) {
    if (shared == nullptr) return;
    shared->start.store(stage);
    const int holder = shared->holder.exchange(-1);
    if (holder < 0) return;
    ::syscall(SYS_pidfd_send_signal, holder, SIGKILL, nullptr, 0);
    ::close(holder);
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
    if (shared == nullptr || kept_process <= 0 || shared->start.load() == Start::done) return;
    if (shared->start.load() == Start::ranks_meet && start_is_overtime == 0) {
        start_is_overtime = 1;
        ::alarm(static_cast<unsigned>(timeout_s) + kOvertimeS);
        return;
    }
    start_was_late = 1;
    ::kill(static_cast<pid_t>(kept_process), SIGKILL);
}

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

// As fork(), but with one table of open files, so that what one of the two opens is open until both
// have ended. -1 where the C library or the kernel cannot.
pid_t fork_with_common_files() {
    int* thread_id = nullptr;  // where the C library notes that of this, the only, thread
    void* robust_mutexes = nullptr;
    size_t size = 0;
    if (::prctl(PR_GET_TID_ADDRESS, &thread_id) != 0 || thread_id == nullptr ||
        ::syscall(SYS_get_robust_list, 0, &robust_mutexes, &size) != 0)
        return -1;
    clone_args how{};
    how.flags = CLONE_FILES | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    how.child_tid = reinterpret_cast<uintptr_t>(thread_id);
    how.exit_signal = SIGCHLD;
    const auto process = static_cast<pid_t>(::syscall(SYS_clone3, &how, sizeof how));
    if (process == 0) ::syscall(SYS_set_robust_list, robust_mutexes, size);
    return process;
}

// mpirun of Open MPI 4.1 (PMIx 4.2) releases its entry of a rank twice when the rank's connection
// closes while it is being made, and then blocks or crashes at its end (one time in some tens when
// a rank is killed as MPI starts) instead of passing an exit code on. So a process that mpirun does
// not know of, the holder, has all files of the rank as well while MPI starts, and keeps its
// connections open until mpirun has ended. It may wait for the rest of a message, though: then they
// must be closed after all.
constexpr int kHoldMs = 4000;
// And an mpirun that has not ended by then is itself killed: nobody else would.
constexpr int kLauncherTimeMs = 8000;

[[noreturn]] void hold_files(int keeper, int launcher) {
    ::setsid();
    for (const int signal : {SIGTERM, SIGUSR1, SIGINT, SIGHUP}) ::signal(signal, SIG_IGN);
    const auto ends_within = [](int process, int ms) {
        pollfd end{.fd = process, .events = POLLIN, .revents = 0};
        int ended;
        while ((ended = ::poll(&end, 1, ms)) < 0 && errno == EINTR) continue;
        return ended != 0;
    };
    ends_within(keeper, -1);
    // mpirun waits for the end of these.
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(file);
    if (!ends_within(launcher, kHoldMs)) {
        ::close_range(0, static_cast<unsigned>(launcher) - 1, 0);
        ::close_range(static_cast<unsigned>(launcher) + 1, ~0U, 0);
        if (!ends_within(launcher, kLauncherTimeMs - kHoldMs))
            ::syscall(SYS_pidfd_send_signal, launcher, SIGKILL, nullptr, 0);
    }
    ::_exit(0);
}

// By the keeper, which is not the holder's parent afterwards.
void start_holder() {
    const auto file_of = [](pid_t process) {
        return static_cast<int>(::syscall(SYS_pidfd_open, process, 0));
    };
    const pid_t parent = ::getppid();
    if (shared == nullptr || !is_open_mpi(parent)) return;
    const int launcher = file_of(parent), keeper = file_of(::getpid());
    const bool known = launcher >= 0 && keeper >= 0 && ::getppid() == parent;
    const pid_t between = known ? fork_with_common_files() : -1;
    if (between == 0) {
        const pid_t process = fork_with_common_files();
        if (process == 0) hold_files(keeper, launcher);
        if (process > 0) shared->holder.store(file_of(process));
        ::_exit(0);
    }
    if (between > 0) ::waitpid(between, nullptr, 0);
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
                     rank == nullptr ? "?" : rank, host, static_cast<int>(timeout_s));
    // SIGINT and SIGTERM are somebody's wish, and told by whoever sent them.
    else if (signal != SIGINT && signal != SIGTERM)
        std::fprintf(stderr, "ferry: rank %s on %s (process %d) was ended by signal %d (%s)\n",
                     rank == nullptr ? "?" : rank, host, static_cast<int>(process), signal,
                     ::strsignal(signal));
    ::_exit(exit_code(ErrorKind::communication));
}

}  // namespace

void go_on_under_keeper() {
    timeout_s = start_timeout_s(own_environment);
    if (launcher_tasks(own_environment) < 2) return;
    const pid_t keeper = ::getpid();
    void* memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) shared = new (memory) Shared;
    start_holder();
    // Signals between here and the handlers would be lost.
    sigset_t passed, before;
    sigemptyset(&passed);
    for (const int signal : {SIGTERM, SIGUSR1}) sigaddset(&passed, signal);
    sigprocmask(SIG_BLOCK, &passed, &before);
    pid_t process = fork_with_common_files();
    if (process < 0) process = ::fork();
    if (process > 0) {
        kept_process = static_cast<sig_atomic_t>(process);
        struct sigaction action {};
        action.sa_handler = pass_on;
        sigemptyset(&action.sa_mask);
        for (const int signal : {SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
        ::signal(SIGINT, SIG_IGN);  // a terminal sends it to both
        ::signal(SIGALRM, check_start);
        ::alarm(static_cast<unsigned>(timeout_s));
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
