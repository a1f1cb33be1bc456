// Preloaded into the ranks of a job (start_kill_test.sh): one rank is ended by SIGKILL in a named
// call, "before" it has done anything (the others wait in it) or "within" it (the others come 1 s
// later). FERRY_TEST_KILL=RANK,before|within,FUNCTION.
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

namespace {

void meet_end(const char* function) {
    const char* kill = std::getenv("FERRY_TEST_KILL");
    const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
    if (kill == nullptr || rank == nullptr) return;
    const std::string what = kill, call = std::string(",") + function;
    if (what.size() < call.size() || what.substr(what.size() - call.size()) != call) return;
    const bool is_victim = what.rfind(std::string(rank) + ",", 0) == 0;
    const bool within = what.find(",within,") != std::string::npos;
    if (!within) {
        if (is_victim) ::kill(::getpid(), SIGKILL);
    } else if (!is_victim) {
        std::this_thread::sleep_for(std::chrono::seconds(1));
    } else {
        std::thread([] {
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            ::kill(::getpid(), SIGKILL);
        }).detach();
    }
}

template <typename Function>
Function* next(const char* name) {
    return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

// Arguments are integers and pointers, passed on as they come: handles differ from one MPI to the
// other.
#define FERRY_TEST_CALL(name)                                                           \
    long name(long a, long b, long c, long d, long e, long f) {                         \
        meet_end(#name);                                                                \
        return next<long(long, long, long, long, long, long)>(#name)(a, b, c, d, e, f); \
    }
FERRY_TEST_CALL(MPI_Init_thread)
FERRY_TEST_CALL(MPI_Comm_split_type)
FERRY_TEST_CALL(MPI_Win_allocate_shared)
FERRY_TEST_CALL(MPI_Finalize)

// The first answer that MPI_Init waits for is the launcher's, to a rank that connects.
ssize_t recv(int socket, void* data, size_t size, int flags) {
    meet_end("recv");
    return next<ssize_t(int, void*, size_t, int)>("recv")(socket, data, size, flags);
}
}
