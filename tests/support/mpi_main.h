// For tests that run on several ranks: the world, made by mpi_main.cpp.
#pragma once
#include "comm/world.h"

namespace ferry {

World& test_world();

}  // namespace ferry
