// A process above each rank of a job of several, so that a rank that is killed ends the job with
// Ferry's exit code: a launcher passes on how its own child ended, and knows only of the signal.
// While MPI starts, a third process keeps the rank's connections to Open MPI's mpirun open.
#pragma once
#include "comm/world.h"

namespace ferry {

// Call before MPI is initialised and before any thread exists. Under a launcher of several tasks
// the caller goes on in a new process; the old one waits for it, passes SIGTERM and SIGUSR1 on, and
// ends as it did, or with the code of Error(communication) when a signal ended it. Otherwise, or
// when there can be no new process, does nothing. Throws Error(usage) for a start_timeout_s()
// (comm/launcher.h) that is none.
void go_on_under_keeper();
// Starts MPI, which has no deadline of its own: the keeper ends a rank for which it takes longer
// than start_timeout_s() (comm/launcher.h), and with it the job.
World start_world();

}  // namespace ferry
