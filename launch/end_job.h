// How a rank that met an Error ends a job of several ranks (DESIGN 4.7).
#pragma once
#include "base/error.h"
#include "comm/world.h"

namespace ferry {

// Says what is wrong and ends every rank with the error's exit code. What is wrong with the user's
// files is wrong on every rank: rank 0 is given the time to say it and end the others.
[[noreturn]] void end_job(World& world, const Error& error);

}  // namespace ferry
