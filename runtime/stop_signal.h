// SIGTERM, SIGUSR1, SIGINT and SIGHUP (unless nohup had it ignored) as a request to stop in good
// order: whoever runs a loop asks between two steps.
#pragma once

namespace ferry {

// A second SIGINT ends the process at once, as does any signal before this call.
void install_stop_signals();

// The signal that came, or 0.
int stop_signal();
inline bool stop_requested() {
    return stop_signal() != 0;
}
// For an interactive loop, where SIGINT stops one answer only.
void clear_stop_signal();

}  // namespace ferry
