// Who is missing, when ranks have waited too long for all of them and no watchdog has told: rank 0
// calls the roll, and ranks that wait in a collective answer. For comm/world.cpp, which is MPI's.
#pragma once
#include <cstdint>
#include <vector>

#include "comm/mpi_api.h"

namespace ferry {

// One wait of one rank. Every rank of the communicator looks in now and then while it waits.
class RollCall {
  public:
    // `number`: of this wait, the same on all ranks; what is left of earlier roll calls is told by
    // it. The communicator must outlive the roll call, whose messages have tags of their own in it.
    RollCall(MPI_Comm communicator, int rank, int size, int64_t number);

    // Answers rank 0; on rank 0, true when another rank asked for the roll to be called.
    bool look();
    // On rank 0: asks all others, and returns those that did not answer within `seconds`: lost, cut
    // off, or at something else. Ends early when all have answered.
    std::vector<int> call(double seconds);
    // On another rank: asks rank 0 to call the roll, and goes on answering for `seconds`, within
    // which rank 0 should have ended the job.
    void request(double seconds);

  private:
    MPI_Comm communicator_;
    int rank_;
    int size_;
    int64_t number_;
};

}  // namespace ferry
