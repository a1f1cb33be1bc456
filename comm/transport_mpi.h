// Lanes over MPI point-to-point messages: works wherever MPI does.
#pragma once
#include <memory>

#include "comm/transport.h"

namespace ferry {

// Throws Error(usage) in a build without MPI.
std::unique_ptr<Transport> make_mpi_transport(World& world);

}  // namespace ferry
