// The only file that includes mpi.h, and the few helpers that its users share.
#pragma once
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <string>

#include "base/error.h"

namespace ferry {

class World;

// All ranks of the world; owned by it.
MPI_Comm world_communicator(const World& world);
// Waits for a non-blocking collective, "what", within the world's deadline.
void wait_for_all(const World& world, MPI_Request request, const char* what);
// All ranks of the communicator are here: a blocking call that has no other form is safe from
// waiting for one that never came.
void meet(const World& world, MPI_Comm communicator, const char* what);

inline void mpi_check(int code, const char* what) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw Error(ErrorKind::communication, "{} failed: {}", what,
                std::string(text, static_cast<size_t>(length)));
}

}  // namespace ferry
