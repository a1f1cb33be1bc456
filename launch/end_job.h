// How a rank that met an Error ends a job of several ranks (DESIGN 4.7).
#pragma once
#include "base/error.h"
#include "comm/world.h"

namespace ferry {

// Says what is wrong and ends every rank with the error's exit code. What is wrong with the user's
// files is wrong on every rank: rank 0 is given the time to say it and end the others.
[[noreturn]] void end_job(World& world, const Error& error);

// What stops all ranks alike, which end in order then: rank 0 says it, before the end of the first
// rank has the launcher end the others and no longer listen to them.
void tell_stop(const World& world, const Error& error);

}  // namespace ferry
