// What this build is made of, for `ferry --version`.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace ferry {

// "ferry 0.1.0" and one line for each library: its version, or "not built in".
std::string describe_versions();
// The same in pairs: {"ferry", "0.1.0 (Release, GNU 12.2.0)"}, {"MPI", "Open MPI v4.1.4"}, ….
std::vector<std::pair<std::string, std::string>> list_versions();

// What the linker wrote into this executable to tell it from others, in hex; empty: it did not.
std::string build_id();

// "UCX_TLS=tcp OMPI_MCA_pml=ob1": what the environment sets for transports and for Ferry itself.
std::string describe_environment();

}  // namespace ferry
