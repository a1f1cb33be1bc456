#include "runtime/stop_signal.h"

#include <signal.h>

#include <atomic>

namespace ferry {
namespace {

std::atomic<int> last_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

// Whoever started the process had SIGHUP ignored, as nohup does. Seen before libraries are loaded,
// of which UCX takes that signal for itself.
bool hangup_is_ignored = false;

void look_at_hangup() {
    struct sigaction action {};
    ::sigaction(SIGHUP, nullptr, &action);
    hangup_is_ignored = action.sa_handler == SIG_IGN;
}
[[gnu::section(".preinit_array"), gnu::used]] void (*before_libraries)() = look_at_hangup;

extern "C" void on_stop_signal(int signal) {
    const int before = last_signal.exchange(signal);
    if (before == SIGINT && signal == SIGINT) {
        ::signal(SIGINT, SIG_DFL);
        ::raise(SIGINT);
    }
}

}  // namespace

void install_stop_signals() {
    struct sigaction action {};
    action.sa_handler = on_stop_signal;
    sigemptyset(&action.sa_mask);
    // No SA_RESTART: a read that waits for a person returns.
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
    if (!hangup_is_ignored) sigaction(SIGHUP, &action, nullptr);
}

int stop_signal() {
    return last_signal.load();
}

void clear_stop_signal() {
    last_signal.store(0);
}

}  // namespace ferry
