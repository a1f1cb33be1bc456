#include "launch/end_job.h"

#include <chrono>
#include <thread>

namespace ferry {

void end_job(World& world, const Error& error) {
    if (world.rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(1));
    fmt::print(stderr, "ferry: rank {} on {}: {}: {}\n", world.rank(), world.host(),
               to_string(error.kind()), error.what());
    world.abort(exit_code(error.kind()));
}

}  // namespace ferry
