// A process above each rank of a job of several, so that a rank that is killed ends the job with
// Ferry's exit code: a launcher passes on how its own child ended, and knows only of the signal.
#pragma once

namespace ferry {

// Call before MPI is initialised and before any thread exists. Under a launcher of several tasks
// the caller goes on in a new process; the old one waits for it, passes SIGTERM and SIGUSR1 on, and
// ends as it did, or with the code of Error(communication) when a signal ended it. Otherwise, or
// when there can be no new process, does nothing.
void go_on_under_keeper();
// MPI has started: until this is called the keeper keeps a deadline of its own, since Open MPI has
// none (300 s, or the environment's FERRY_START_TIMEOUT_S); a rank that is late is ended, and with
// it the job.
void tell_keeper_started();

}  // namespace ferry
